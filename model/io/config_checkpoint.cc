#include "model/io/config_checkpoint.h"

#include <filesystem>

#include "model/families/families.h"
#include "model/io/bnb_reader.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"
#include "quant/quantized_weight.h"

namespace qlora {
namespace {

namespace fs = std::filesystem;

// Where weights would lie: an address that no plan reads.
alignas(64) const std::byte kNowhere[64] = {};

class ConfigCheckpoint : public StoredCheckpoint {
 public:
  explicit ConfigCheckpoint(const std::string& file) : config_(read_json(file)) {
    path_ = file;
    desc_ = family_of_config(config_, file).describe(config_, file);
    quantization_ = read_quantization_config(config_, file);
    const Format plain = stored_format(file);
    for (const ExpectedTensor& e : expected_tensors(desc_)) {
      StoredTensor t;
      t.vector = e.vector;
      t.view = e.linear && quantization_ ? quantized_view(e) : plain_view(e, plain);
      tensors_.emplace(e.name(), t);
    }
  }

  std::vector<const MappedFile*> files() const override { return {}; }
  std::string fingerprint() const override { unreadable(); }
  std::string config_json() const override { return config_.dump(2) + "\n"; }

 private:
  [[noreturn]] void unreadable() const { fail(Category::input, path_, ": holds no weights, only shapes"); }

  Format stored_format(const std::string& file) const {
    for (const char* key : {"torch_dtype", "dtype"}) {
      const auto it = config_.find(key);
      if (it == config_.end() || it->is_null()) continue;
      if (*it == "bfloat16") return Format::bf16;
      if (*it == "float16") return Format::f16;
      if (*it == "float32") return Format::f32;
      fail(Category::input, file, ": ", key, " is ", it->dump(), "; bfloat16, float16 and float32 are known");
    }
    return Format::bf16;
  }

  static WeightView plain_view(const ExpectedTensor& e, Format format) {
    WeightView w;
    w.format = format;
    w.rows = e.rows;
    w.cols = e.cols;
    w.data = kNowhere;
    return w;
  }

  WeightView quantized_view(const ExpectedTensor& e) const {
    QuantizedSpec spec;
    spec.format = quantization_->format;
    spec.block_size = quantization_->block_size;
    spec.double_quant = quantization_->double_quant;
    auto* const nowhere = const_cast<std::byte*>(kNowhere);
    return view_of(spec, e.rows, e.cols,
                   {nowhere, reinterpret_cast<float*>(nowhere), reinterpret_cast<uint8_t*>(nowhere),
                    reinterpret_cast<float*>(nowhere)});
  }

  Json config_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_shapes(const std::string& path) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) && fs::path(path).extension() == ".json")
    return std::make_unique<ConfigCheckpoint>(path);
  const std::string config = path + "/config.json";
  if (fs::is_regular_file(config, ignored) && !SafetensorsFolder::exists(path))
    return std::make_unique<ConfigCheckpoint>(config);
  return Checkpoint::open(path);
}

}  // namespace qlora
