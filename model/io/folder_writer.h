#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "model/io/checkpoint.h"
#include "quant/quantized_weight.h"

namespace qlora {

// A model folder as transformers reads it: safetensors (sharded above `max_shard` bytes), config.json,
// generation_config.json. The tokenizer is the caller's to save beside them.
struct FolderSpec {
  // The linears of the blocks as bitsandbytes keeps them; embeddings, head, norms and biases stay plain.
  // nullopt: everything plain.
  std::optional<QuantizedSpec> quantize;
  // Type of what is plain, and the "dtype" of quantized weights. nullopt: each tensor's own
  // (Checkpoint::value_dtype; a vector that a GGUF keeps wider than needed takes the embedding's when that is
  // exact).
  std::optional<DType> dtype;
  uint64_t max_shard = 5'000'000'000;
  int threads = 1;
  // Called with the share done, 0 to 1, now and then.
  std::function<void(double)> progress;
};

// Streams: one linear at a time is held quantized, some rows of it in 32 bits. The folder is made when
// absent; config.json comes last, so that a folder with one is complete. Category::usage when `base` is
// quantized already, Category::input for weights that cannot be (NaN), Category::io when the system fails.
void write_model_folder(const Checkpoint& base, const std::string& folder, const FolderSpec& spec);

// The JSON of a quant_state tensor, as bitsandbytes spells it.
std::string quant_state_json(const QuantizedSpec& spec, DType dtype, int64_t rows, int64_t cols,
                             float nested_offset);
// Python's repr of a float: the shortest decimal that gives it back.
std::string python_repr(double d);

}  // namespace qlora
