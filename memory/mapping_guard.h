#pragma once
#include <cstddef>
#include <string>

namespace qlora {

// While it lives, a SIGBUS within [data, data + bytes), which is mapped from `path`, ends the process with
// one line that names the file and exit 5: the disk failed, or the file shrank.
class MappingGuard {
 public:
  MappingGuard(const void* data, size_t bytes, const std::string& path);
  ~MappingGuard();
  MappingGuard(const MappingGuard&) = delete;
  MappingGuard& operator=(const MappingGuard&) = delete;

 private:
  int slot_;
};

}  // namespace qlora
