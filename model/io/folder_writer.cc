#include "model/io/folder_writer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "memory/error.h"
#include "memory/file.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"
#include "quant/codebook.h"

namespace qlora {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 18;

std::string format_name(Format f) { return f == Format::nf4 ? "nf4" : f == Format::fp4 ? "fp4" : "int8"; }

// Type of a plain tensor in the folder.
DType plain_dtype(const Checkpoint& base, const ExpectedTensor& e, const FolderSpec& spec) {
  if (spec.dtype) return *spec.dtype;
  const DType own = base.value_dtype(e.name());
  const DType model = base.value_dtype(std::string(kEmbedName) + ".weight");
  if (own != DType::f32 || model == DType::f32 || !e.vector) return own;
  for (const float f : base.read_vector(e.name(), e.cols))
    if (round_to(model, f) != f) return own;
  return model;
}

void to_dtype(DType t, const float* values, int64_t n, std::vector<std::byte>& out) {
  out.resize(static_cast<size_t>(n) * size_of(t));
  if (t == DType::f32) {
    std::memcpy(out.data(), values, out.size());
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = t == DType::bf16 ? bf16(values[i]).bits : f16(values[i]).bits;
    std::memcpy(out.data() + 2 * i, &bits, 2);
  }
}

// One linear, quantized. It is made twice: once for its sizes and the small parts that lie early in a file
// (fp32 before uint8), once when its codes are due; so never more than one is held.
struct QuantizedLinear {
  std::vector<std::byte> data;
  std::vector<float> absmax, nested_absmax;
  std::vector<uint8_t> absmax_codes;
  float offset = 0;
};

QuantizedLinear quantize_linear(const Checkpoint& base, const ExpectedTensor& e, const FolderSpec& spec) {
  const QuantizedSizes sizes = sizes_of(*spec.quantize, e.rows, e.cols);
  QuantizedLinear q;
  q.data.resize(static_cast<size_t>(sizes.data));
  q.absmax.resize(static_cast<size_t>(sizes.absmax));
  q.absmax_codes.resize(static_cast<size_t>(sizes.absmax_codes));
  q.nested_absmax.resize(static_cast<size_t>(sizes.nested_absmax));
  const std::string name = e.name();
  const auto read = [&](int64_t row, int64_t count, float* out) {
    base.read_rows(name, row, count, out);
    if (spec.dtype && *spec.dtype != DType::f32)  // as it would lie in a plain folder of that type
      for (int64_t i = 0; i < count * e.cols; ++i) out[i] = round_to(*spec.dtype, out[i]);
  };
  const QuantizedParts parts{q.data.data(), q.absmax.data(), q.absmax_codes.data(), q.nested_absmax.data()};
  q.offset = quantize_matrix(name, *spec.quantize, e.rows, e.cols, read, parts, spec.threads).nested_offset;
  return q;
}

class Writer {
 public:
  Writer(const Checkpoint& base, const std::string& folder, const FolderSpec& spec)
      : base_(base), folder_(folder), spec_(spec), expected_(expected_tensors(base.desc())) {}

  void run() {
    for (size_t i = 0; i < expected_.size(); ++i) {
      declare(i);
      report(expected_[i], spec_.quantize ? 0.5 : 0);
    }
    const std::vector<std::vector<TensorSpec>> shards = split();
    Json map = Json::object();
    uint64_t total = 0;
    for (size_t s = 0; s < shards.size(); ++s) {
      const std::string name = shard_name(s, shards.size());
      write_shard(folder_ + "/" + name, shards[s]);
      for (const TensorSpec& t : shards[s]) {
        total += t.bytes();
        map[t.name] = name;
      }
    }
    if (shards.size() > 1) {
      std::map<std::string, std::string> sorted = map;
      const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", sorted}};
      write_file(folder_ + "/model.safetensors.index.json", index.dump(2) + "\n");
    }
    write_generation_config();
    write_config();
  }

 private:
  struct Source {
    size_t expected;
    std::string part;  // "" plain, else "data", "absmax", ...
  };
  struct Kept {  // of the first pass
    std::vector<float> absmax, nested_absmax;
    std::string state;
  };

  void report(const ExpectedTensor& e, double weight) {
    done_ += weight * static_cast<double>(e.rows * e.cols);
    if (!spec_.progress || weight == 0) return;
    double all = 0;
    for (const ExpectedTensor& x : expected_) all += static_cast<double>(x.rows * x.cols);
    spec_.progress(std::min(1.0, done_ / all));
  }

  void add(size_t expected, const char* part, TensorSpec t) {
    sources_[t.name] = {expected, part};
    units_.back().push_back(std::move(t));
  }

  void declare(size_t i) {
    const ExpectedTensor& e = expected_[i];
    units_.emplace_back();
    const DType dtype = plain_dtype(base_, e, spec_);
    if (e.linear && !e.vector && spec_.quantize) {
      declare_quantized(i, dtype);
      return;
    }
    add(i, "",
        {e.name(), dtype, e.vector ? std::vector<int64_t>{e.cols} : std::vector<int64_t>{e.rows, e.cols}});
  }

  void declare_quantized(size_t i, DType dtype) {
    const ExpectedTensor& e = expected_[i];
    const QuantizedSpec& q = *spec_.quantize;
    const QuantizedSizes sizes = sizes_of(q, e.rows, e.cols);
    const std::string name = e.name();
    Kept& kept = kept_[i];
    if (q.format == Format::int8) {
      kept.absmax = quantize_linear(base_, e, spec_).absmax;
      add(i, "data", {name, DType::i8, {e.rows, e.cols}});
      add(i, "scb", {e.module + ".SCB", DType::f32, {e.rows}});
      add(i, "format", {e.module + ".weight_format", DType::u8, {}});
      return;
    }
    float offset = 0;
    if (q.double_quant) {
      QuantizedLinear made = quantize_linear(base_, e, spec_);
      kept.nested_absmax = std::move(made.nested_absmax);
      offset = made.offset;
      add(i, "codes", {name + ".absmax", DType::u8, {sizes.absmax_codes}});
      add(i, "nested", {name + ".nested_absmax", DType::f32, {sizes.nested_absmax}});
      add(i, "map8", {name + ".nested_quant_map", DType::f32, {256}});
    } else {
      add(i, "absmax", {name + ".absmax", DType::f32, {sizes.absmax}});
    }
    kept.state = quant_state_json(q, dtype, e.rows, e.cols, offset);
    add(i, "data", {name, DType::u8, {sizes.data, 1}});
    add(i, "map4", {name + ".quant_map", DType::f32, {16}});
    add(i, "state",
        {name + ".quant_state.bitsandbytes__" + format_name(q.format),
         DType::u8,
         {static_cast<int64_t>(kept.state.size())}});
  }

  // Units (a tensor, or a quantized weight with its parts) stay together.
  std::vector<std::vector<TensorSpec>> split() const {
    std::vector<std::vector<TensorSpec>> shards(1);
    uint64_t used = 0;
    for (const std::vector<TensorSpec>& unit : units_) {
      uint64_t bytes = 0;
      for (const TensorSpec& t : unit) bytes += t.bytes();
      if (used != 0 && used + bytes > spec_.max_shard) {
        shards.emplace_back();
        used = 0;
      }
      used += bytes;
      shards.back().insert(shards.back().end(), unit.begin(), unit.end());
    }
    return shards;
  }

  static std::string shard_name(size_t shard, size_t count) {
    if (count == 1) return "model.safetensors";
    const auto five = [](size_t n) {
      const std::string digits = std::to_string(n);
      return std::string(5 - std::min<size_t>(5, digits.size()), '0') + digits;
    };
    return "model-" + five(shard + 1) + "-of-" + five(count) + ".safetensors";
  }

  void write_shard(const std::string& path, const std::vector<TensorSpec>& tensors) {
    SafetensorsWriter out(path, tensors);
    for (const TensorSpec& t : out.order()) write_tensor(out, t, sources_.at(t.name));
    out.commit();
  }

  void write_tensor(SafetensorsWriter& out, const TensorSpec& t, const Source& source) {
    const ExpectedTensor& e = expected_[source.expected];
    const std::string& part = source.part;
    const auto write = [&](const void* data) { out.write(t.name, data, t.bytes()); };
    if (part.empty()) {
      write_plain(out, t, e);
      report(e, 1);
    } else if (part == "data") {
      write(current(source.expected).data.data());
      report(e, 0.5);
    } else if (part == "codes") {
      write(current(source.expected).absmax_codes.data());
    } else if (part == "absmax") {
      write(current(source.expected).absmax.data());
    } else if (part == "scb") {
      write(kept_.at(source.expected).absmax.data());
    } else if (part == "nested") {
      write(kept_.at(source.expected).nested_absmax.data());
    } else if (part == "map4") {
      write(codebook(spec_.quantize->format));
    } else if (part == "map8") {
      write(dynamic_map(true).data());
    } else if (part == "state") {
      write(kept_.at(source.expected).state.data());
    } else {
      const uint8_t row_major = 0;
      write(&row_major);
    }
  }

  const QuantizedLinear& current(size_t expected) {
    if (current_index_ != expected) {
      current_ = quantize_linear(base_, expected_[expected], spec_);
      current_index_ = expected;
    }
    return current_;
  }

  void write_plain(SafetensorsWriter& out, const TensorSpec& t, const ExpectedTensor& e) {
    std::vector<std::byte> bytes;
    if (e.vector) {
      to_dtype(t.dtype, base_.read_vector(t.name, e.cols).data(), e.cols, bytes);
      out.write(t.name, bytes.data(), bytes.size());
      return;
    }
    const int64_t rows = std::max<int64_t>(1, kPieceElements / e.cols);
    std::vector<float> values(static_cast<size_t>(std::min(rows, e.rows) * e.cols));
    for (int64_t r = 0; r < e.rows; r += rows) {
      const int64_t count = std::min(rows, e.rows - r);
      base_.read_rows(t.name, r, count, values.data());
      to_dtype(t.dtype, values.data(), count * e.cols, bytes);
      out.write(t.name, bytes.data(), bytes.size());
    }
  }

  DType model_dtype() const { return plain_dtype(base_, expected_.front(), spec_); }

  nlohmann::json quantization_config() const {
    const QuantizedSpec& q = *spec_.quantize;
    const bool four = q.format != Format::int8;
    return {{"_load_in_4bit", four},
            {"_load_in_8bit", !four},
            {"bnb_4bit_compute_dtype", four ? name_of(model_dtype()) : "float32"},
            {"bnb_4bit_quant_storage", "uint8"},
            {"bnb_4bit_quant_type", four ? format_name(q.format) : "fp4"},
            {"bnb_4bit_use_double_quant", four && q.double_quant},
            {"llm_int8_enable_fp32_cpu_offload", false},
            {"llm_int8_has_fp16_weight", false},
            {"llm_int8_skip_modules", nullptr},
            {"llm_int8_threshold", 6.0},
            {"load_in_4bit", four},
            {"load_in_8bit", !four},
            {"quant_method", "bitsandbytes"}};
  }

  // Sorted keys, as transformers writes them. Both spellings of the type are read by transformers 4 and 5.
  void write_config() const {
    nlohmann::json config = nlohmann::json::parse(base_.config_json());
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] = name_of(model_dtype());
    if (spec_.quantize) config["quantization_config"] = quantization_config();
    write_file(folder_ + "/config.json", config.dump(2) + "\n");
  }

  void write_generation_config() const {
    const std::string own = base_.path() + "/generation_config.json";
    std::error_code ignored;
    if (std::filesystem::exists(own, ignored)) {
      write_file(folder_ + "/generation_config.json", read_file(own, kSmallJsonBytes));
      return;
    }
    const ModelDesc& desc = base_.desc();
    nlohmann::json out = nlohmann::json::object();
    if (desc.bos) out["bos_token_id"] = *desc.bos;
    if (desc.eos.size() == 1) out["eos_token_id"] = desc.eos[0];
    if (desc.eos.size() > 1) out["eos_token_id"] = desc.eos;
    if (desc.pad) out["pad_token_id"] = *desc.pad;
    write_file(folder_ + "/generation_config.json", out.dump(2) + "\n");
  }

  const Checkpoint& base_;
  const std::string& folder_;
  const FolderSpec& spec_;
  std::vector<ExpectedTensor> expected_;
  std::vector<std::vector<TensorSpec>> units_;
  std::map<std::string, Source> sources_;
  std::map<size_t, Kept> kept_;
  QuantizedLinear current_;
  size_t current_index_ = SIZE_MAX;
  double done_ = 0;
};

}  // namespace

std::string python_repr(double d) {
  const double size = std::abs(d);
  char text[64];
  if (size != 0 && (size < 1e-4 || size >= 1e16)) {
    const auto end = std::to_chars(text, text + sizeof(text), d, std::chars_format::scientific).ptr;
    return {text, end};
  }
  const auto end = std::to_chars(text, text + sizeof(text), d, std::chars_format::fixed).ptr;
  std::string digits(text, end);
  if (digits.find('.') == std::string::npos) digits += ".0";
  return digits;
}

std::string quant_state_json(const QuantizedSpec& spec, DType dtype, int64_t rows, int64_t cols,
                             float nested_offset) {
  std::string text =
      cat("{\"quant_type\": \"", format_name(spec.format), "\", \"blocksize\": ", spec.block_size,
          ", \"dtype\": \"", name_of(dtype), "\", \"shape\": [", rows, ", ", cols, "]");
  if (spec.double_quant)
    text += ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": " +
            python_repr(static_cast<double>(nested_offset));
  return text + "}";
}

void write_model_folder(const Checkpoint& base, const std::string& folder, const FolderSpec& spec) {
  if (base.quantization())
    fail(Category::usage, base.path(), ": is quantized already; start from the original model");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail_by_system(folder, error);
  Writer(base, folder, spec).run();
}

}  // namespace qlora
