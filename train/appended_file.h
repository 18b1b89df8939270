#pragma once
#include <string>
#include <string_view>

namespace qlora {

// A file that grows line by line while a run goes on. What is written is with the system at once, so that a
// run that is killed leaves it; finish() alone says whether the disk has taken it. Category::io, naming the
// file.
class AppendedFile {
 public:
  // An existing file, or with `fresh` a new one: false from is_open() where that name is taken.
  AppendedFile(const std::string& path, bool fresh);
  ~AppendedFile();
  AppendedFile(AppendedFile&& o) noexcept;
  AppendedFile& operator=(AppendedFile&& o) noexcept;

  bool is_open() const { return fd_ >= 0; }
  const std::string& path() const { return path_; }
  void write(std::string_view text);
  // Synced and closed: the last call, on a run's good end.
  void finish();

 private:
  [[noreturn]] void fail_with(const char* what) const;
  std::string path_;
  int fd_ = -1;
};

}  // namespace qlora
