#pragma once
#include <memory>

#include "model/weights.h"
#include "tools/cuda_bench/sizes.h"

namespace qlora::bench {

// The model of that config whose weights are drawn: linears in NF4 with double quantization, the rest bf16,
// and ready to be sent to a card. All blocks' weights lie in the same host memory, so that it takes a block's
// and an embedding's; on the card each block has its own.
std::shared_ptr<const Model> drawn_model(const StepSize& size);

}  // namespace qlora::bench
