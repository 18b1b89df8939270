#pragma once
#include "tools/cuda_bench/card.h"
#include "tools/cuda_bench/roofs.h"
#include "train/engine.h"

namespace qlora::bench {

// Training of a drawn model, as qlora-train does it: an engine, LoRA on all linears, and steps over rows that
// are one document each, of as many microbatches as the size says.
class Training {
 public:
  Training(int device, const StepSize& size);
  Engine& engine() { return *engine_; }
  // Puts one microbatch's passes on the card.
  void start();
  // A whole step; waits for it.
  void step();

 private:
  StepSize size_;
  std::unique_ptr<Engine> engine_;
  Batch batch_;
  int64_t number_ = 0;
};

}  // namespace qlora::bench
