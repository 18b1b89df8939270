#include "memory/process.h"

#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace qlora {
namespace {

// The number behind `key` in a file of "Key:   123 kB" lines, in bytes.
std::optional<size_t> kib_field(const char* path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    if (line.rfind(key, 0) == 0) return static_cast<size_t>(std::stoull(line.substr(key.size()))) * 1024;
  return std::nullopt;
}

// A cgroup file with one number; absent, or "max": none.
std::optional<size_t> number_in(const std::string& path) {
  std::ifstream in(path);
  unsigned long long v = 0;
  if (!(in >> v)) return std::nullopt;
  return static_cast<size_t>(v);
}

// limit - usage of this process's cgroup, walking up: every level binds.
size_t cgroup_room() {
  size_t room = std::numeric_limits<size_t>::max();
  const auto consider = [&](const std::string& folder, const char* limit_file, const char* usage_file) {
    const std::optional<size_t> limit = number_in(folder + limit_file),
                                usage = number_in(folder + usage_file);
    if (limit && usage) room = std::min(room, *limit > *usage ? *limit - *usage : 0);
  };
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const bool v2 = line.rfind("0::", 0) == 0;
    const size_t memory = line.find(":memory:");
    if (!v2 && memory == std::string::npos) continue;
    std::string path = v2 ? line.substr(3) : line.substr(memory + 8);
    while (true) {
      if (v2)
        consider("/sys/fs/cgroup" + path + "/", "memory.max", "memory.current");
      else
        consider("/sys/fs/cgroup/memory" + path + "/", "memory.limit_in_bytes", "memory.usage_in_bytes");
      if (path.size() <= 1) break;
      const size_t slash = path.rfind('/');
      path = slash == 0 || slash == std::string::npos ? "" : path.substr(0, slash);
      if (path.empty()) path = "/";
    }
  }
  return room;
}

// Pages of [begin, end) that are resident, as /proc/self/pagemap has them: bit 63 of 8 bytes a page.
size_t resident_pages(int pagemap, uintptr_t begin, uintptr_t end, size_t page) {
  size_t resident = 0;
  std::array<uint64_t, 512> entries;
  for (uintptr_t at = begin; at < end;) {
    const size_t n = std::min<size_t>(entries.size(), (end - at) / page);
    const ssize_t got = pread(pagemap, entries.data(), n * 8, static_cast<off_t>(at / page * 8));
    if (got <= 0) break;
    for (size_t i = 0; i < static_cast<size_t>(got) / 8; ++i) resident += entries[i] >> 63;
    at += static_cast<size_t>(got) / 8 * page;
  }
  return resident;
}

}  // namespace

size_t code_to_come() {
  struct Sum {
    int pagemap;
    size_t page, absent;
  } sum{open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), static_cast<size_t>(sysconf(_SC_PAGESIZE)), 0};
  const auto add = [](dl_phdr_info* info, size_t, void* to) {
    Sum& s = *static_cast<Sum*>(to);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      if (segment.p_type != PT_LOAD) continue;
      const uintptr_t first = info->dlpi_addr + segment.p_vaddr, begin = first / s.page * s.page,
                      end = (first + segment.p_memsz + s.page - 1) / s.page * s.page;
      const size_t there = s.pagemap < 0 ? 0 : resident_pages(s.pagemap, begin, end, s.page);
      s.absent += end - begin - there * s.page;
    }
    return 0;
  };
  dl_iterate_phdr(add, &sum);
  if (sum.pagemap >= 0) close(sum.pagemap);
  return sum.absent;
}

ResidentSet resident_set() {
  ResidentSet r;
  r.anonymous = kib_field("/proc/self/status", "RssAnon:").value_or(0);
  r.file = kib_field("/proc/self/status", "RssFile:").value_or(0);
  return r;
}

size_t peak_resident_bytes() {
  // Not getrusage: its figure begins with the peak of the process that started this one. Read into the stack,
  // since training asks at every step.
  char text[8192];
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  const ssize_t got = file < 0 ? -1 : read(file, text, sizeof text - 1);
  if (file >= 0) close(file);
  text[std::max<ssize_t>(got, 0)] = '\0';
  const char* const line = std::strstr(text, "VmHWM:");
  return line ? static_cast<size_t>(std::strtoull(line + 6, nullptr, 10)) * 1024 : 0;
}

void return_freed_memory() { malloc_trim(0); }

size_t available_bytes() {
  return std::min(kib_field("/proc/meminfo", "MemAvailable:").value_or(std::numeric_limits<size_t>::max()),
                  cgroup_room());
}

}  // namespace qlora
