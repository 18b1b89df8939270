#include "tools/cuda_bench/drawn_model.h"

#include <algorithm>
#include <map>
#include <random>

#include "model/io/stored_checkpoint.h"
#include "tools/cuda_bench/card.h"

namespace qlora::bench {
namespace {

constexpr size_t kPattern = 1048573;  // elements: a prime number

template <class T, class Draw>
std::vector<std::byte> drawn(size_t bytes, Draw&& draw) {
  std::vector<std::byte> out(bytes);
  std::vector<T> pattern(std::min(kPattern, bytes / sizeof(T) + 1));
  for (T& t : pattern) t = draw();
  const auto* const from = reinterpret_cast<const std::byte*>(pattern.data());
  for (size_t at = 0; at < bytes; at += kPattern * sizeof(T))
    std::copy_n(from, std::min(kPattern * sizeof(T), bytes - at), out.data() + at);
  return out;
}

class DrawnCheckpoint : public StoredCheckpoint {
 public:
  explicit DrawnCheckpoint(const StepSize& size) : config_(size.config) {
    path_ = size.name;
    desc_ = desc_of(size);
    quantization_ = StoredQuantization{kNf4Spec.format, kNf4Spec.double_quant, kNf4Spec.block_size};
    for (const ExpectedTensor& e : expected_tensors(desc_)) {
      StoredTensor t;
      t.vector = e.vector;
      t.view = e.linear ? codes(e.rows, e.cols) : plain(e.rows, e.cols, e.vector);
      tensors_.emplace(e.name(), t);
    }
  }
  std::vector<const MappedFile*> files() const override { return {}; }
  // The memory is not a file's: its pages stay, and what was drawn is finite.
  void check_finite(const std::string&) const override {}
  void forget(const std::string&) const override {}
  std::string fingerprint() const override { return path_; }
  std::string config_json() const override { return config_; }

 private:
  struct Codes {
    std::vector<std::byte> data, scales;
    std::vector<float> nested;
  };

  WeightView codes(int64_t rows, int64_t cols) {
    Codes& c = codes_[{rows, cols}];
    const QuantizedSizes n = sizes_of(kNf4Spec, rows, cols);
    if (c.data.empty()) {
      const auto byte = [&] { return static_cast<uint8_t>(random_() >> 56); };
      c.data = drawn<uint8_t>(static_cast<size_t>(n.data), byte);
      c.scales = drawn<uint8_t>(static_cast<size_t>(n.absmax_codes), byte);
      c.nested.assign(static_cast<size_t>(n.nested_absmax), kNestedAbsmax);
    }
    WeightView w =
        view_of(kNf4Spec, rows, cols,
                {c.data.data(), nullptr, reinterpret_cast<uint8_t*>(c.scales.data()), c.nested.data()});
    w.nested_offset = kNestedOffset;
    return w;
  }

  WeightView plain(int64_t rows, int64_t cols, bool norm) {
    std::vector<std::byte>& bytes = plain_[{rows, cols}];
    std::normal_distribution<float> normal(0, .02f);
    if (bytes.empty())
      bytes = drawn<bf16>(static_cast<size_t>(rows * cols) * sizeof(bf16),
                          [&] { return bf16(norm ? 1.f : normal(random_)); });
    WeightView w;
    w.format = Format::bf16;
    w.rows = rows;
    w.cols = cols;
    w.data = bytes.data();
    return w;
  }

  std::string config_;
  std::mt19937_64 random_{3};
  std::map<std::pair<int64_t, int64_t>, Codes> codes_;
  std::map<std::pair<int64_t, int64_t>, std::vector<std::byte>> plain_;
};

}  // namespace

std::shared_ptr<const Model> drawn_model(const StepSize& size) {
  return Model::load(std::make_shared<DrawnCheckpoint>(size), {}, 1);
}

}  // namespace qlora::bench
