#pragma once
#include <string>
#include <vector>

// Files under tests/golden.
namespace qlora::test {

std::string golden(const std::string& name);  // a path
std::string read_golden(const std::string& name);
// The content of an .xz file, through the xz program (xz-utils).
std::string unxz_golden(const std::string& name);
// Only '\n' ends a line; the empty one at the end is left out.
std::vector<std::string> lines(const std::string& text);

}  // namespace qlora::test
