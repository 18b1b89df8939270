#include <algorithm>
#include <cmath>
#include <set>

#include "memory/error.h"
#include "memory/sha256.h"
#include "model/families/families.h"
#include "model/io/gguf.h"
#include "model/io/json.h"
#include "model/io/stored_checkpoint.h"

namespace qlora {
namespace {

constexpr const char* kRopeFactors = "rope_freqs.weight";

bool is_block_format(Format f) { return f == Format::q4_0 || f == Format::q4_1 || f == Format::q8_0; }

class GgufCheckpoint : public StoredCheckpoint {
 public:
  explicit GgufCheckpoint(const std::string& path) : file_(path), family_(family_of_gguf(file_)) {
    path_ = path;
    config_ = family_.gguf_config(file_);
    desc_ = family_.describe(config_, path);
    std::set<std::string> known = {kRopeFactors};
    for (const ExpectedTensor& e : expected_tensors(desc_)) {
      const std::string name = family_.gguf_module(e.module) + "." + e.leaf;
      tensors_.emplace(e.name(), bind(e, name));
      known.insert(name);
    }
    for (const GgufTensor& t : file_.tensors())
      if (known.count(t.name) == 0)
        fail(Category::input, path, ": tensor ", t.name,
             " has no place in the model that the metadata describe; use another file");
    read_rope_factors();
  }

  std::string config_json() const override {
    Json out = config_;
    if (!desc_.rope.gguf_factors.empty()) out["rope_scaling"] = llama3_scaling();
    return out.dump(2) + "\n";
  }

  std::vector<const MappedFile*> files() const override { return {&file_.file()}; }

  std::string fingerprint() const override {
    Sha256 hash;
    hash.update(config_.dump());
    for (const GgufTensor& t : file_.tensors()) {
      // Not through a stream: one that finds no memory goes on without the rest.
      hash.update(t.name + '\n');
      hash.update(t.type->name);
      hash.update("\n");
      for (const int64_t d : t.shape) hash.update(std::to_string(d) + '\n');
      const uint64_t digest = fast_digest(file_.data(t), t.bytes);
      hash.update(&digest, sizeof(digest));
    }
    return hash.hex();
  }

 private:
  StoredTensor bind(const ExpectedTensor& e, const std::string& name) const {
    const GgufTensor* t = file_.find(name);
    if (t == nullptr)
      fail(Category::input, path_, ": tensor ", name, " is absent; fetch or convert the model again");
    const std::vector<int64_t> shape =
        e.vector ? std::vector<int64_t>{e.cols} : std::vector<int64_t>{e.rows, e.cols};
    if (t->shape != shape)
      fail(Category::input, path_, ": tensor ", name, " has other dimensions than the metadata ask for (",
           e.vector ? cat(e.cols) : cat(e.rows, " x ", e.cols), "); convert the model again");
    if (!t->type->format)
      fail(Category::input, path_, ": tensor ", name, ": type ", t->type->name,
           " is not supported yet; use a file in F32, F16, BF16, Q4_0, Q4_1 or Q8_0");
    StoredTensor out;
    out.file = path_;
    out.vector = e.vector;
    out.view.format = *t->type->format;
    out.view.rows = e.rows;
    out.view.cols = e.cols;
    out.view.data = file_.data(*t);
    out.permuted_heads = family_.gguf_permutes_qk ? e.permuted_heads : 0;
    out.round_bf16 = is_block_format(out.view.format);
    const uintptr_t align = out.view.format == Format::f32 ? 4 : 2;
    out.in_place = out.permuted_heads == 0 && reinterpret_cast<uintptr_t>(out.view.data) % align == 0;
    return out;
  }

  // Llama 3's scaling as a tensor: one divisor a rotated pair.
  void read_rope_factors() {
    const GgufTensor* t = file_.find(kRopeFactors);
    if (t == nullptr) return;
    const int64_t pairs = desc_.blocks[0].rotary_dims / 2;
    if (t->type->format != Format::f32 || t->shape != std::vector<int64_t>{pairs})
      fail(Category::input, path_, ": tensor ", kRopeFactors, " is no F32 vector of ", pairs,
           "; convert the model again");
    if (desc_.rope.kind != RopeDesc::Kind::standard)
      fail(Category::input, path_, ": tensor ", kRopeFactors,
           " stands beside llama.rope.scaling; convert the "
           "model again");
    WeightView w;
    w.rows = 1;
    w.cols = pairs;
    w.data = file_.data(*t);
    desc_.rope.gguf_factors.resize(static_cast<size_t>(pairs));
    decode_row(w, 0, 0, pairs, desc_.rope.gguf_factors.data());
    for (int64_t i = 0; i < pairs; ++i)
      if (const float f = desc_.rope.gguf_factors[static_cast<size_t>(i)]; !(f > 0) || !std::isfinite(f))
        fail(Category::input, path_, ": tensor ", kRopeFactors, ": element ", i, " is ", f,
             " where a positive number belongs; convert the model again");
  }

  // config.json has no place for factors, but they were made from llama3 parameters: published models have
  // low 1 and high 4, and the original length shows in where the ramp lies. Taken only when it gives the
  // factors.
  Json llama3_scaling() const {
    const std::vector<float>& factors = desc_.rope.gguf_factors;
    const double factor = std::round(*std::max_element(factors.begin(), factors.end()));
    for (int64_t original = 1024; original <= 131072; original *= 2) {
      bool same = factor > 1;
      for (size_t i = 0; i < factors.size() && same; ++i) {
        const double due = llama3_factor(i, factor, static_cast<double>(original));
        same = std::abs(factors[i] - due) <= 1e-4 * due;
      }
      if (same)
        return Json{{"factor", factor},
                    {"high_freq_factor", 4.0},
                    {"low_freq_factor", 1.0},
                    {"original_max_position_embeddings", original},
                    {"rope_type", "llama3"}};
    }
    fail(Category::input, path_, ": tensor ", kRopeFactors,
         " is no llama3 scaling that config.json could say; start from the original model folder");
  }

  // How transformers' modeling_rope_utils divides the frequency of pair i.
  double llama3_factor(size_t i, double factor, double original) const {
    const double pi = 3.14159265358979323846, low = 1, high = 4;
    const double exponent = 2.0 * static_cast<double>(i) / desc_.blocks[0].rotary_dims;
    const double wavelength = 2 * pi * std::pow(desc_.rope.theta, exponent);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const double smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  }

  GgufFile file_;
  const Family& family_;
  Json config_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_gguf_checkpoint(const std::string& path) {
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace qlora
