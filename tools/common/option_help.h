#pragma once
// What a table says about itself.
#include <string>

#include "tools/common/options.h"

namespace qlora::tools {

// --help: usage, every option by group with its default, aliases of common tools, exit codes, a working
// example. Lines are at most `columns` wide, but for words that are wider.
std::string help_text(const Table& table, int columns = 80);

// A manual page (section 1) and a completion for bash; cmake --install writes them.
std::string man_page(const Table& table, const std::string& version);
std::string bash_completion(const Table& table);

}  // namespace qlora::tools
