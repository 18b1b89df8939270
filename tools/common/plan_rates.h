#pragma once
#include "memory/plan.h"

namespace qlora::tools {

// What ops cost on this machine: measured once for a processor, ISA and number of threads, and kept in the
// user's cache, so that qlora-plan and the run after it decide by the same figures.
OpRates op_rates(int threads);

}  // namespace qlora::tools
