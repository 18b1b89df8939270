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
// A folder of its own for one test, removed with it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace qlora::test
