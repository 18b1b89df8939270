#pragma once
#include <string>
#include <vector>

#include "tools/cuda_bench/card.h"

namespace qlora::bench {

// What is measured, each a command of its own, so that a run that is cut loses one.
struct Part {
  const char* name;
  const char* what;
  void (*run)(Bench&);
};
const std::vector<Part>& parts();

void roofs_part(Bench& b);
void decode_part(Bench& b);
void gemm_part(Bench& b);
void fused_part(Bench& b);
void attention_part(Bench& b);
void small_part(Bench& b);
void step_part(Bench& b);

// Times the library's proposals for every product of a step of b.sizes.large, and writes what was fastest to
// `table`, an AlgorithmTable (kernels/cuda/algorithm_table.h); lines of other products that it has already
// stay.
void tune(Bench& b, const std::string& table);

}  // namespace qlora::bench
