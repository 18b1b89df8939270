#include "tests/support/golden.h"


#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace qlora::test {

std::string golden(const std::string& name) { return std::string(QLORA_GOLDEN) + "/" + name; }

std::string read_golden(const std::string& name) {
  std::ifstream in(golden(name), std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + golden(name));
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string unxz_golden(const std::string& name) {
  const std::string path = golden(name);
  if (!std::filesystem::exists(path)) throw std::runtime_error("cannot read " + path);
  FILE* pipe = popen(("xz -dc '" + path + "'").c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot run xz");
  std::string out;
  char buffer[1 << 16];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  if (pclose(pipe) != 0) throw std::runtime_error("xz could not unpack " + path + "; is xz-utils installed?");
  return out;
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

}  // namespace qlora::test
