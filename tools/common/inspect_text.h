#pragma once
// What qlora-inspect does with text: tokens, chats, rows as the model sees them. All print to stdout.
#include <ctime>
#include <filesystem>
#include <string>

#include "tools/common/options.h"

namespace qlora::tools {

// "2025-03-09 14:05:06", "2025-03-09T14:05:06", "2025-03-09 14:05" or "2025-03-09". Category::usage, opening
// with `origin`, for anything else and for days that no month has.
std::tm parse_clock(const std::string& text, const std::string& origin);

// `path`: a folder with tokenizer.json, that file itself, or a GGUF.
void inspect_tokenize(const Options& options, const std::filesystem::path& path);
void inspect_tokenize_file(const Options& options, const std::filesystem::path& path);
void inspect_detokenize(const Options& options, const std::filesystem::path& path);
void inspect_chat(const Options& options, const std::filesystem::path& path);
void inspect_render(const Options& options, const std::filesystem::path& path);

}  // namespace qlora::tools
