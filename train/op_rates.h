#pragma once
#include <string>

#include "memory/plan.h"

namespace qlora {

// Measures what ops cost here, in some milliseconds: a product with a 4-bit weight, attention, a copy, each
// on one thread by the thread's own clock, which other programs' turns do not count in; rates of compute are
// then those of `threads` threads. They decide what is computed again, never what comes out.
OpRates measure_op_rates(int threads);

// What a CUDA card is taken to do where none is measured: a consumer's of the last generations, with 12 GB/s
// to pinned memory. Choices hang on it, never results.
OpRates cuda_rates();

// Bytes a second that the disk of a folder gives, past the page cache, in pages of 4 MiB: a temporary file is
// written there and read. Category::io when the folder or the disk refuses.
double measure_disk_rate(const std::string& folder);

}  // namespace qlora
