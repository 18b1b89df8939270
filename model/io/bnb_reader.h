#pragma once
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"

namespace qlora {

// What config.json says in quantization_config: nullopt when the key is absent. Category::input for another
// method than bitsandbytes and for storages that the engine does not read.
std::optional<StoredQuantization> read_quantization_config(const Json& config, const std::string& where);

// Reads one quantized linear of a bitsandbytes folder (X.weight with X.weight.absmax, .quant_map,
// .quant_state.bitsandbytes__nf4, …, or X.SCB), checking every part against the shape [rows, cols].
class BnbReader {
 public:
  explicit BnbReader(const SafetensorsFolder& tensors) : tensors_(tensors) {}
  // nullopt: the module's weight is not quantized.
  std::optional<WeightView> read(const std::string& module, int64_t rows, int64_t cols);
  // How the linears that were read are quantized: all alike, or read() fails.
  const std::optional<StoredQuantization>& seen() const { return seen_; }
  // Names that belong to a quantized module, for the check that no tensor of a folder is left over.
  static bool belongs(const std::string& module, const std::string& tensor);

 private:
  using Entry = SafetensorsFolder::Entry;
  WeightView read_4bit(const std::string& module, const Entry& state, Format format, int64_t rows,
                       int64_t cols);
  WeightView read_int8(const std::string& module, const Entry& scb, int64_t rows, int64_t cols);
  void read_state(const std::string& name, const Entry& state, int64_t rows, int64_t cols, WeightView& w);
  void read_scales(const std::string& weight, WeightView& w);
  const Entry& part(const std::string& name, DType dtype, int64_t elements) const;
  // fp32 in place where the file aligns it, else a copy that lives as long as the reader.
  const float* floats(const std::string& name, int64_t elements);
  void remember(const std::string& module, const WeightView& w);

  const SafetensorsFolder& tensors_;
  std::deque<std::vector<float>> copies_;
  std::optional<StoredQuantization> seen_;
};

}  // namespace qlora
