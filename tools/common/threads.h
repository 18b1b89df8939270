#pragma once
#include <filesystem>
#include <optional>

#include "tools/common/options.h"

namespace qlora::tools {

// --threads, else OMP_NUM_THREADS (its first number), else what the affinity mask and the cgroup's quota
// allow.
int thread_count(const Options& options);
int default_threads();

// CPUs that the cgroup's quota is worth (quota / period, the least over the cgroup and all above it), for v2
// (cpu.max) and v1 (cpu.cfs_quota_us); none when there is no limit. `root` is where proc/ and sys/ are found.
std::optional<double> cgroup_cpus(const std::filesystem::path& root = "/");

}  // namespace qlora::tools
