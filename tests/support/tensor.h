#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/common/isa.h"
#include "memory/view.h"

namespace qlora::testing {

// Half the distance between neighbours of 1: the relative error of one rounding.
inline double unit_roundoff(DType t) { return t == DType::bf16 ? std::ldexp(1, -8) : std::ldexp(1, -24); }
inline constexpr double kU = 5.9604644775390625e-8;  // fp32's

// The ISAs that this machine can run.
inline std::vector<Isa> isas() {
  std::vector<Isa> out;
  for (Isa i : kIsas)
    if (supported(i)) out.push_back(i);
  return out;
}

// Sets the ISA in force for a scope.
class WithIsa {
 public:
  explicit WithIsa(Isa isa) : former_(active_isa()) { set_active_isa(isa); }
  ~WithIsa() { set_active_isa(former_); }
  WithIsa(const WithIsa&) = delete;
  WithIsa& operator=(const WithIsa&) = delete;

 private:
  Isa former_;
};

// A matrix of a test, fp32 or bf16, its rows `gap` elements apart from each other; the gaps hold a NaN that
// no op may change, nor let into what it computes.
class Tensor {
 public:
  Tensor(DType dtype, int64_t rows, int64_t cols, int64_t gap = 3)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(cols + gap) {
    bytes_.assign(static_cast<size_t>(rows * stride_) * size_of(dtype) + 64, kPattern);
  }
  static Tensor normal(DType dtype, int64_t rows, int64_t cols, uint64_t seed, double scale = 1,
                       int64_t gap = 3) {
    Tensor t(dtype, rows, cols, gap);
    std::mt19937_64 random(seed);
    std::normal_distribution<double> draw(0, scale);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) t.set(i, j, draw(random));
    return t;
  }
  // From row-major values, rounded.
  static Tensor of(DType dtype, int64_t rows, int64_t cols, const std::vector<double>& values) {
    Tensor t(dtype, rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) t.set(i / cols, i % cols, values[static_cast<size_t>(i)]);
    return t;
  }
  Mat mat() { return {bytes_.data(), dtype_, rows_, cols_, stride_}; }
  operator ConstMat() const { return {bytes_.data(), dtype_, rows_, cols_, stride_}; }
  DType dtype() const { return dtype_; }
  double get(int64_t i, int64_t j) const {
    const unsigned char* p = bytes_.data() + static_cast<size_t>(i * stride_ + j) * size_of(dtype_);
    if (dtype_ == DType::bf16) return static_cast<float>(load<bf16>(p));
    return load<float>(p);
  }
  void set(int64_t i, int64_t j, double value) {
    unsigned char* p = bytes_.data() + static_cast<size_t>(i * stride_ + j) * size_of(dtype_);
    const float f = static_cast<float>(value);
    const bf16 b(f);
    std::memcpy(p, dtype_ == DType::bf16 ? static_cast<const void*>(&b) : &f, size_of(dtype_));
  }
  // Row-major, without the gaps.
  std::vector<double> values() const {
    std::vector<double> out;
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) out.push_back(get(i, j));
    return out;
  }
  bool gaps_intact() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const auto element = static_cast<int64_t>(i / size_of(dtype_));
      if ((element >= rows_ * stride_ || element % stride_ >= cols_) && bytes_[i] != kPattern) return false;
    }
    return true;
  }
  // All of it, gaps too.
  std::string_view bytes() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }
  bool operator==(const Tensor& o) const { return bytes_ == o.bytes_; }

 private:
  static constexpr unsigned char kPattern = 0xff;
  template <class T>
  static T load(const unsigned char* p) {
    T t;
    std::memcpy(&t, p, sizeof t);
    return t;
  }
  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<unsigned char> bytes_;
};

// Whether `got` of type `t` is `expected` up to `error` before its rounding, and the rounding.
inline bool close(double got, double expected, double error, DType t) {
  const double slack = error + unit_roundoff(t) * (std::abs(expected) + error) + 1e-37;
  return std::abs(got - expected) <= slack;
}

template <class U>
std::vector<U> convert(const std::vector<double>& v) {
  std::vector<U> out;
  for (double x : v) out.push_back(U(x));
  return out;
}

}  // namespace qlora::testing
