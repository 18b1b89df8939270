#include "tools/common/threads.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tools/common/option_value.h"

namespace qlora::tools {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMost = 4096;

std::vector<std::string> words_of(const fs::path& file) {
  std::ifstream in(file);
  std::vector<std::string> words;
  for (std::string word; words.size() < 4 && in >> word;) words.push_back(word.substr(0, 32));
  return words;
}

std::optional<double> ratio(const std::string& quota, const std::string& period) {
  const auto q = parse_integer(quota), p = parse_integer(period);  // "max" and -1 are no limit
  if (!q || !p || *q <= 0 || *p <= 0) return std::nullopt;
  return static_cast<double>(*q) / static_cast<double>(*p);
}

std::optional<double> quota_v2(const fs::path& folder) {
  const auto words = words_of(folder / "cpu.max");
  return words.size() == 2 ? ratio(words[0], words[1]) : std::nullopt;
}

std::optional<double> quota_v1(const fs::path& folder) {
  const auto quota = words_of(folder / "cpu.cfs_quota_us"), period = words_of(folder / "cpu.cfs_period_us");
  return quota.size() == 1 && period.size() == 1 ? ratio(quota[0], period[0]) : std::nullopt;
}

// `controllers` of a v1 line ("cpu,cpuacct") name cpu.
bool names_cpu(const std::string& controllers) {
  const auto names = split_words(controllers);
  return std::find(names.begin(), names.end(), "cpu") != names.end();
}

// Inside a container the path may be the host's: folders that are absent count for nothing and the mount
// itself is asked last.
void least_upwards(const fs::path& mount, fs::path below, std::optional<double> (*quota)(const fs::path&),
                   std::optional<double>& least) {
  for (;; below = below.parent_path()) {
    const auto found = quota(mount / below);
    if (found) least = least ? std::min(*least, *found) : *found;
    if (below.empty()) return;
  }
}

}  // namespace

std::optional<double> cgroup_cpus(const fs::path& root) {
  std::optional<double> least;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // number:controllers:/path
    const size_t first = line.find(':'), second = first == line.npos ? first : line.find(':', first + 1);
    if (second == line.npos || line.find("..") != line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path below = fs::path(line.substr(second + 1)).relative_path();
    if (controllers.empty()) least_upwards(root / "sys/fs/cgroup", below, quota_v2, least);
    if (!names_cpu(controllers)) continue;
    // The folder has the controllers' joint name, and `cpu` as a link to it.
    for (const std::string& name : {controllers, std::string("cpu")})
      least_upwards(root / "sys/fs/cgroup" / name, below, quota_v1, least);
  }
  return least;
}

int default_threads() {
  if (const char* wanted = std::getenv("OMP_NUM_THREADS")) {
    const auto count = parse_integer(split_words(wanted).front());
    if (count && *count > 0) return static_cast<int>(std::min(*count, kMost));
  }
  int64_t cpus = std::max(1u, std::thread::hardware_concurrency());
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cpus = std::max(1, CPU_COUNT(&allowed));
  // Part of a CPU counts as one: a quota of 1.5 is used up by two threads and by no fewer.
  if (const auto quota = cgroup_cpus())
    cpus = std::min(cpus, static_cast<int64_t>(std::ceil(std::min(*quota, 4096.0))));
  return static_cast<int>(std::clamp<int64_t>(cpus, 1, kMost));
}

int thread_count(const Options& options) {
  const auto threads = options.find<int64_t>("threads");
  return threads ? static_cast<int>(*threads) : default_threads();
}

}  // namespace qlora::tools
