#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/gemm/gemm.h"

namespace qlora {

// Operands for the products' tests and benchmark: random, owned, with rows wider than the view.

// Lines of the cache, as the arena's spans begin: without a gap a benchmark's rows lie as a model's do.
template <class T>
struct LineAllocator {
  using value_type = T;
  T* allocate(size_t n) { return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const = default;
};
class TestMatrix {
 public:
  // `gap` columns lie between the rows of the view.
  TestMatrix(DType dtype, int64_t rows, int64_t cols, int64_t gap)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(cols + gap) {
    bytes_.resize(static_cast<size_t>(rows_ * stride_) * size_of(dtype) + 1, kGap);
    std::mt19937 rng(static_cast<unsigned>(rows * 31 + cols * 7 + gap));
    std::uniform_real_distribution<float> uniform(-1.f, 1.f);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) set(r, c, uniform(rng));
  }
  ConstMat view() const { return {bytes_.data(), dtype_, rows_, cols_, stride_}; }
  Mat view() { return {bytes_.data(), dtype_, rows_, cols_, stride_}; }
  void set(int64_t r, int64_t c, float f) {
    if (dtype_ == DType::bf16)
      view().row<bf16>(r)[c] = bf16(f);
    else
      view().row<float>(r)[c] = f;
  }
  bool padding_untouched() const {
    const size_t size = size_of(dtype_), row = static_cast<size_t>(stride_) * size;
    for (int64_t r = 0; r < rows_; ++r)
      for (size_t i = static_cast<size_t>(cols_) * size; i < row; ++i)
        if (bytes_[static_cast<size_t>(r) * row + i] != kGap) return false;
    return bytes_.back() == kGap;
  }
  std::string_view bytes() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }
  friend bool same_bits(const TestMatrix& a, const TestMatrix& b) { return a.bytes_ == b.bytes_; }
  friend bool same_row(const TestMatrix& a, const TestMatrix& b, int64_t r) {
    const size_t row = static_cast<size_t>(a.stride_) * size_of(a.dtype_);
    return std::memcmp(a.bytes_.data() + static_cast<size_t>(r) * row,
                       b.bytes_.data() + static_cast<size_t>(r) * row, row) == 0;
  }

 private:
  static constexpr uint8_t kGap = 0xff;  // NaN: no op may let it into what it computes
  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<uint8_t, LineAllocator<uint8_t>> bytes_;
};

// A weight of random codes and scales: any bytes are a weight.
class TestWeight {
 public:
  struct Options {
    int block_size = 64;
    bool doubly = true;
    float scale = 1;
  };
  TestWeight(Format format, int64_t rows, int64_t cols, Options options) {
    w_.format = format;
    w_.rows = rows;
    w_.cols = cols;
    w_.scale = options.scale;
    w_.block_size = options.block_size;
    std::mt19937 rng(static_cast<unsigned>(rows * 17 + cols + static_cast<int>(format)));
    std::uniform_real_distribution<float> uniform(-1.f, 1.f), positive(0.2f, 1.f);
    const auto put = [&](size_t at, auto value) { std::memcpy(data_.data() + at, &value, sizeof value); };
    const size_t n = static_cast<size_t>(rows * cols);
    data_.resize(n * 4 + 16);
    for (uint8_t& b : data_) b = static_cast<uint8_t>(rng());
    if (format == Format::f32)
      for (size_t i = 0; i < n; ++i) put(4 * i, uniform(rng));
    if (format == Format::bf16)
      for (size_t i = 0; i < n; ++i) put(2 * i, bf16(uniform(rng)));
    if (format == Format::f16)
      for (size_t i = 0; i < n; ++i) put(2 * i, f16(uniform(rng)));
    const size_t block = format == Format::q4_0 ? 18 : format == Format::q4_1 ? 20 : 34;
    for (size_t at = 0; is_gguf(format) && at < n / 32 * block; at += block) {
      put(at, f16(0.1f * positive(rng)));
      if (format == Format::q4_1) put(at + 2, f16(uniform(rng)));
    }
    const size_t blocks =
        (n + static_cast<size_t>(options.block_size) - 1) / static_cast<size_t>(options.block_size);
    for (size_t i = 0; i < blocks + static_cast<size_t>(rows); ++i) absmax_.push_back(positive(rng));
    const bool four_bits = format == Format::nf4 || format == Format::fp4;
    if (four_bits || format == Format::int8) w_.absmax = absmax_.data();
    if (four_bits && options.doubly) {
      for (size_t i = 0; i < blocks; ++i) codes_.push_back(static_cast<uint8_t>(rng()));
      for (size_t i = 0; i < blocks / 256 + 1; ++i) nested_.push_back(0.3f * positive(rng));
      for (int i = 0; i < 256; ++i) map_.push_back(static_cast<float>(i - 127) / 128.f);
      w_.absmax = nullptr;
      w_.absmax_codes = codes_.data();
      w_.nested_absmax = nested_.data();
      w_.code_map = map_.data();
      w_.nested_offset = 0.5f;
    }
    w_.data = data_.data();
  }
  TestWeight(const TestWeight&) = delete;
  const WeightView& view() const { return w_; }

 private:
  WeightView w_;
  std::vector<uint8_t> data_, codes_;
  std::vector<float> absmax_, nested_, map_;
};

constexpr DType kDTypes[] = {DType::f32, DType::bf16};

inline void multiply(Exec& e, bool nt, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
                     const Mat& y, DecodeAhead* ahead = nullptr) {
  (nt ? gemm_nt : gemm_nn)(e, "product", terms, epilogue, y, ahead);
}

}  // namespace qlora
