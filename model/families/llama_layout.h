#pragma once
#include <cstdint>
#include <optional>

#include "model/desc.h"
#include "model/io/config.h"

namespace qlora {

// What families of Llama's layout share in config.json: dims, heads, norms, rotation, token ids. A family
// gives the values that its absent keys take, and what its blocks have besides.
struct LlamaLayout {
  static constexpr int64_t kMaxDim = int64_t{1} << 24;
  static constexpr int64_t kMaxLayers = 4096;
  static constexpr int64_t kMaxHeads = 4096;

  int64_t vocab = 32000, dim = 4096, ff = 11008, layers = 32, heads = 32;
  std::optional<int64_t> kv_heads;  // none: as many as query heads
  std::optional<int64_t> head_dim;  // none: dim over heads
  int64_t max_positions = 2048;
  double norm_eps = 1e-6, rope_theta = 10000;
  bool mlp_bias = false, qk_norm = false;
};

// All but the family's name. Asks for the keys that it knows and refuses those of the layout that would
// change the result; the caller asks for its own and ends with config.finish(). Category::input.
ModelDesc read_llama_layout(ConfigReader& config, const LlamaLayout& defaults);

}  // namespace qlora
