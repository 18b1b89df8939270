#include "model/io/bnb_reader.h"

#include <cmath>
#include <cstring>

#include "memory/error.h"
#include "model/io/config.h"
#include "quant/blockwise8.h"
#include "quant/codebook.h"

namespace qlora {
namespace {

constexpr const char* kRemedy = "; the checkpoint is damaged: fetch or quantize it again";

bool is_block_size(int64_t n) { return n >= 32 && n <= 4096 && (n & (n - 1)) == 0; }

const char* name_of(Format f) { return f == Format::fp4 ? "fp4" : f == Format::nf4 ? "nf4" : "int8"; }

std::string state_name(const std::string& module, Format f) {
  return module + ".weight.quant_state.bitsandbytes__" + name_of(f);
}

}  // namespace

std::optional<StoredQuantization> read_quantization_config(const Json& config, const std::string& where) {
  const auto it = config.find("quantization_config");
  if (it == config.end() || it->is_null()) return std::nullopt;
  const std::string place = where + ": quantization_config";
  ConfigReader q(*it, place);
  const std::string method = q.string("quant_method", "bitsandbytes");
  if (method != "bitsandbytes")
    q.refuse("quant_method", "weights of this method are not supported",
             "use the original model, or a bitsandbytes or GGUF one");
  const auto either = [&](const char* key, const char* old_key) {
    const bool now = q.boolean(key, false), before = q.boolean(old_key, false);  // both are asked for
    return now || before;
  };
  const bool four = either("load_in_4bit", "_load_in_4bit"), eight = either("load_in_8bit", "_load_in_8bit");
  if (four == eight)
    fail(Category::input, place,
         ": exactly one of load_in_4bit and load_in_8bit must be true; correct the file");
  q.only("bnb_4bit_quant_storage", "uint8");
  q.only("llm_int8_has_fp16_weight", false);
  const std::string type = q.string("bnb_4bit_quant_type", "fp4");
  if (four && type != "nf4" && type != "fp4")
    q.refuse("bnb_4bit_quant_type", "the type is unknown", "supported are nf4 and fp4");
  q.ignore({"bnb_4bit_compute_dtype", "llm_int8_enable_fp32_cpu_offload", "llm_int8_skip_modules",
            "llm_int8_threshold"});
  StoredQuantization out;
  out.double_quant = q.boolean("bnb_4bit_use_double_quant", false) && four;
  q.finish();
  out.format = eight ? Format::int8 : type == "nf4" ? Format::nf4 : Format::fp4;
  return out;
}

bool BnbReader::belongs(const std::string& module, const std::string& tensor) {
  if (tensor.rfind(module + ".", 0) != 0) return false;
  const std::string leaf = tensor.substr(module.size() + 1);
  return leaf == "SCB" || leaf == "weight_format" || leaf == "weight" || leaf.rfind("weight.", 0) == 0;
}

const SafetensorsFolder::Entry& BnbReader::part(const std::string& name, DType dtype,
                                                int64_t elements) const {
  const Entry* e = tensors_.find(name);
  if (e == nullptr)
    fail(Category::input, tensors_.files()[0]->path(), ": tensor ", name, " is absent", kRemedy);
  if (e->info->dtype != dtype)
    fail(Category::input, e->file->path(), ": tensor ", name, " is ", safetensors_name(e->info->dtype),
         " where ", safetensors_name(dtype), " belongs", kRemedy);
  if (e->info->elements() != elements)
    fail(Category::input, e->file->path(), ": tensor ", name, " is ", e->info->shape_text(), " where ",
         elements, " elements belong", kRemedy);
  return *e;
}

const float* BnbReader::floats(const std::string& name, int64_t elements) {
  const std::byte* data = part(name, DType::f32, elements).data();
  if (reinterpret_cast<uintptr_t>(data) % alignof(float) == 0) return reinterpret_cast<const float*>(data);
  std::vector<float>& copy = copies_.emplace_back(static_cast<size_t>(elements));
  if (elements != 0) std::memcpy(copy.data(), data, copy.size() * sizeof(float));
  return copy.data();
}

std::optional<WeightView> BnbReader::read(const std::string& module, int64_t rows, int64_t cols) {
  std::optional<WeightView> out;
  for (const Format f : {Format::nf4, Format::fp4})
    if (const Entry* state = tensors_.find(state_name(module, f)))
      out = read_4bit(module, *state, f, rows, cols);
  if (const Entry* scb = tensors_.find(module + ".SCB")) out = read_int8(module, *scb, rows, cols);
  if (out) remember(module, *out);
  return out;
}

WeightView BnbReader::read_4bit(const std::string& module, const Entry& state, Format format, int64_t rows,
                                int64_t cols) {
  const std::string weight = module + ".weight";
  WeightView w;
  w.format = format;
  w.rows = rows;
  w.cols = cols;
  read_state(state.info->name, state, rows, cols, w);
  w.data = part(weight, DType::u8, (w.elements() + 1) / 2).data();
  const float* map = floats(weight + ".quant_map", 16);
  for (int i = 0; i < 16; ++i)
    if (!(std::abs(map[i] - codebook(format)[i]) <= 1e-6f))
      fail(Category::input, state.file->path(), ": tensor ", weight, ".quant_map: element ", i, " is ",
           map[i], " where ", name_of(format), " has ", codebook(format)[i],
           "; other codebooks are not supported");
  read_scales(weight, w);
  return w;
}

// The JSON {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
// "nested_offset"}.
void BnbReader::read_state(const std::string& name, const Entry& state, int64_t rows, int64_t cols,
                           WeightView& w) {
  const std::string where = state.file->path() + ": tensor " + name;
  if (state.info->dtype != DType::u8 || state.info->bytes > 65536)
    fail(Category::input, where, " is no JSON text", kRemedy);
  const Json json = parse_json({reinterpret_cast<const char*>(state.data()), state.info->bytes}, where);
  ConfigReader q(json, where);
  if (q.string("quant_type", "") != name_of(w.format))
    q.refuse("quant_type", cat("the tensor's name says ", name_of(w.format)),
             "fetch or quantize the model again");
  w.block_size = static_cast<int>(q.integer("blocksize", 0, 0, 1 << 20));
  if (!is_block_size(w.block_size))
    q.refuse("blocksize", "a power of two from 32 to 4096 belongs there",
             "fetch or quantize the model again");
  const std::string dtype = q.string("dtype", "");
  if (dtype != "float32" && dtype != "bfloat16" && dtype != "float16")
    q.refuse("dtype", "float32, bfloat16 or float16 belongs there", "fetch or quantize the model again");
  const Json* shape = q.value("shape");
  if (shape == nullptr || *shape != Json{rows, cols})
    q.refuse("shape", cat("the model needs [", rows, ", ", cols, "]"), "fetch or quantize the model again");
  const bool nested = q.value("nested_blocksize") != nullptr;
  if (nested) {
    q.only("nested_blocksize", kBlock8);
    q.only("nested_dtype", "float32");
    const double offset = q.number("nested_offset", 0);
    if (q.value("nested_offset") == nullptr || !is_finite(static_cast<float>(offset)))
      q.refuse("nested_offset", "double quantization needs its number", "fetch or quantize the model again");
    w.nested_offset = static_cast<float>(offset);
  }
  q.finish();
  const int64_t blocks = (w.elements() + w.block_size - 1) / w.block_size;
  const std::string weight = name.substr(0, name.find(".quant_state."));
  if (nested)
    w.absmax_codes = reinterpret_cast<const uint8_t*>(part(weight + ".absmax", DType::u8, blocks).data());
  else
    w.absmax = floats(weight + ".absmax", blocks);
}

// The second level: few numbers, so that they are looked at here, once.
void BnbReader::read_scales(const std::string& weight, WeightView& w) {
  if (w.absmax_codes == nullptr) return;
  const int64_t blocks = (w.elements() + w.block_size - 1) / w.block_size;
  const int64_t nested = (blocks + kBlock8 - 1) / kBlock8;
  w.nested_absmax = floats(weight + ".nested_absmax", nested);
  w.code_map = floats(weight + ".nested_quant_map", 256);
  const auto finite = [&](const char* leaf, const float* values, int64_t n) {
    const int64_t bad = first_non_finite(values, n);
    if (bad < n)
      fail(Category::input, tensors_.find(weight)->file->path(), ": tensor ", weight, leaf, ": element ", bad,
           " is ", values[bad], kRemedy);
  };
  finite(".nested_absmax", w.nested_absmax, nested);
  finite(".nested_quant_map", w.code_map, 256);
}

WeightView BnbReader::read_int8(const std::string& module, const Entry& scb, int64_t rows, int64_t cols) {
  WeightView w;
  w.format = Format::int8;
  w.rows = rows;
  w.cols = cols;
  w.data = part(module + ".weight", DType::i8, w.elements()).data();
  w.absmax = floats(module + ".SCB", rows);
  // 0 is row-major; Turing's and Ampere's tiled layouts are not written any more.
  if (tensors_.find(module + ".weight_format") != nullptr &&
      *part(module + ".weight_format", DType::u8, 1).data() != std::byte{0})
    fail(Category::input, scb.file->path(), ": tensor ", module,
         ".weight_format: only 0 (row-major) is supported; save the model again with a recent bitsandbytes");
  return w;
}

void BnbReader::remember(const std::string& module, const WeightView& w) {
  const StoredQuantization q{w.format, w.absmax_codes != nullptr,
                             w.format == Format::int8 ? 64 : w.block_size};
  if (!seen_) seen_ = q;
  if (seen_->format != q.format || seen_->double_quant != q.double_quant || seen_->block_size != q.block_size)
    fail(Category::input, tensors_.find(module + ".weight")->file->path(), ": tensor ", module,
         ".weight is quantized otherwise than the linears before it; quantize the model again");
}

}  // namespace qlora
