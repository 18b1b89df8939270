#pragma once
#include "memory/pager.h"
#include "memory/plan.h"
#include "tools/common/options.h"

namespace qlora::tools {

// What ops cost on this machine: measured once for a processor, ISA and number of threads, and kept in the
// user's cache, so that qlora-plan and the run after it decide by the same figures.
OpRates op_rates(int threads);

// Bytes a second of the disk that --output-dir is on, measured once a disk and kept beside the others; 0
// where it cannot be measured.
double disk_rate(const Options& options);
inline double transfer_seconds(const PageTraffic& t, double bytes_a_second) {
  return static_cast<double>(t.bytes_read + t.bytes_written) / bytes_a_second;
}

}  // namespace qlora::tools
