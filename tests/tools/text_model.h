#pragma once
// A tiny model with a tokenizer: the golden Llama, a byte for a token, a chat template; and a program run in
// this process.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "memory/error.h"
#include "tests/support/temp_folder.h"
#include "tools/common/main.h"

namespace qlora::tools {

inline constexpr const char* kTemplate =
    "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no such role here') }}{% endif %}"
    "<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}";

// GPT-2's printable character for a byte, as UTF-8.
inline std::string byte_character(int byte) {
  int next = 256, code = 0;
  for (int b = 0; b <= byte; ++b) {
    const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    code = shown ? b : next++;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))};
}

// Ids: 0 <pad>, 1 <s>, 2 </s>, byte b is 3 + b.
inline void write_tokenizer(const test::TempFolder& to, bool with_template = true) {
  using nlohmann::ordered_json;
  ordered_json vocab = {{"<pad>", 0}, {"<s>", 1}, {"</s>", 2}}, added = ordered_json::array();
  for (const auto& [token, id] : vocab.items())
    added.push_back({{"id", id},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  for (int b = 0; b < 256; ++b) vocab[byte_character(b)] = 3 + b;
  const ordered_json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const ordered_json tokenizer = {{"version", "1.0"},
                                  {"truncation", nullptr},
                                  {"padding", nullptr},
                                  {"added_tokens", added},
                                  {"normalizer", nullptr},
                                  {"pre_tokenizer", level},
                                  {"post_processor", nullptr},
                                  {"decoder", level},
                                  {"model",
                                   {{"type", "BPE"},
                                    {"dropout", nullptr},
                                    {"unk_token", nullptr},
                                    {"continuing_subword_prefix", nullptr},
                                    {"end_of_word_suffix", nullptr},
                                    {"fuse_unk", false},
                                    {"byte_fallback", false},
                                    {"ignore_merges", false},
                                    {"vocab", vocab},
                                    {"merges", ordered_json::array()}}}};
  to.write("tokenizer.json", tokenizer.dump());
  to.write(
      "tokenizer_config.json",
      R"({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "GPT2Tokenizer"})");
  if (with_template) to.write("chat_template.jinja", kTemplate);
}

inline void write_model(const test::TempFolder& to) {
  for (const char* file : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(std::string(QLORA_GOLDEN "/models/llama/") + file, to / file);
  write_tokenizer(to);
}

struct Ended {
  int code;
  std::string out, err;
  nlohmann::ordered_json json() const { return nlohmann::ordered_json::parse(out); }
};

// The program in this process; `in`: a file for stdin.
inline Ended run_program(const Table& (*table)(), int (*program)(Options&), std::vector<std::string> words,
                         const std::string& in = "/dev/null") {
  words.insert(words.begin(), table().program);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const int kept = dup(0), file = open(in.c_str(), O_RDONLY);
  dup2(file, 0);
  close(file);
  clearerr(stdin);
  std::cin.clear();
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Ended ended;
  ended.code =
      run_tool(static_cast<int>(argv.size()), argv.data(), table, {[] { return "any"; }, ""}, program);
  ended.out = ::testing::internal::GetCapturedStdout();
  ended.err = ::testing::internal::GetCapturedStderr();
  dup2(kept, 0);
  close(kept);
  return ended;
}

}  // namespace qlora::tools
