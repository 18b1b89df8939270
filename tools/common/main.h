#pragma once
// The frame of every program: parse, answer --help and --version, run the body, turn what it throws into one
// line on stderr and the documented exit code.
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "tools/common/options.h"

namespace qlora::tools {

struct Build {
  std::function<std::string()> isa;  // asked by --version only: it may refuse QLORA_ISA
  std::string cuda;                  // CUDA's version; empty: not built into this program
};

// What a program that is linked like this one has.
Build this_build();

// Returns the program's exit code: the body's, or that of the error. The body's result on stdout is flushed
// and checked here: a full disk is exit 5, a reader that left (`| head`) is no failure. The table is made
// here too, since memory may run out there already.
int run_tool(int argc, char** argv, const Table& (*table_of)(), const Build& build,
             const std::function<int(Options&)>& body);

// qlora-train 0.1.0 (Release, GCC 12.2.0, ISA avx2, CUDA not built)
std::string version_text(const Table& table, const Build& build);

// --json's result: one object, one line, on stdout.
void print_json(const nlohmann::ordered_json& result);

// True once nobody reads stdout any more: time to stop writing to it.
bool stdout_reader_left();

}  // namespace qlora::tools
