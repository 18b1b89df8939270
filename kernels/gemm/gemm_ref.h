#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/gemm/gemm.h"

namespace qlora {

// The definition of the products, in T (double in tests), unrounded: what gemm_nt, gemm_nn and gemm_tn round
// or add to. Single-threaded, allocates.

template <class T>
T gemm_element(const ConstMat& m, int64_t row, int64_t col) {
  return m.dtype == DType::bf16 ? static_cast<T>(static_cast<float>(m.row<bf16>(row)[col]))
                                : static_cast<T>(m.row<float>(row)[col]);
}

// Row `row` of w as the products see it: decoded, scaled, rounded to bf16 when x is.
inline std::vector<float> gemm_weight_row(const WeightView& w, int64_t row, DType x) {
  std::vector<float> out(static_cast<size_t>(w.cols));
  decode_row(w, row, 0, w.cols, out.data());
  for (float& f : out) f = round_to(x, f);
  return out;
}

// sum [M, N] and, for a bound of the rounding error, magnitude [M, N] = the sum of absolute values.
template <class T>
struct GemmSums {
  int64_t cols;
  std::vector<T> sum, magnitude;
};

template <class T>
GemmSums<T> gemm_ref(std::span<const GemmTerm> terms, const GemmEpilogue& epilogue, int64_t M, int64_t N,
                     bool transposed_w) {
  const size_t count = static_cast<size_t>(M * N);
  GemmSums<T> y{N, std::vector<T>(count), std::vector<T>(count)};
  const auto add = [&](int64_t m, int64_t n, T value) {
    y.sum[m * N + n] += value;
    y.magnitude[m * N + n] += value < 0 ? -value : value;
  };
  for (const GemmTerm& t : terms)
    for (int64_t r = 0; r < t.w.rows; ++r) {
      const std::vector<float> w = gemm_weight_row(t.w, r, t.x.dtype);
      for (int64_t m = 0; m < M; ++m)
        for (int64_t c = 0; c < t.w.cols; ++c)
          add(m, transposed_w ? r : c, gemm_element<T>(t.x, m, transposed_w ? c : r) * static_cast<T>(w[c]));
    }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      if (epilogue.bias != nullptr) add(m, n, static_cast<T>(epilogue.bias[n]));
      if (epilogue.residual) add(m, n, gemm_element<T>(epilogue.residual, m, n));
    }
  return y;
}

// scale * a^T b [P, Q].
template <class T>
GemmSums<T> gemm_tn_ref(const ConstMat& a, const ConstMat& b, float scale) {
  const int64_t P = a.cols, Q = b.cols;
  GemmSums<T> y{Q, std::vector<T>(static_cast<size_t>(P * Q)), std::vector<T>(static_cast<size_t>(P * Q))};
  for (int64_t m = 0; m < a.rows; ++m)
    for (int64_t p = 0; p < P; ++p)
      for (int64_t q = 0; q < Q; ++q) {
        const T v = static_cast<T>(scale) * gemm_element<T>(a, m, p) * gemm_element<T>(b, m, q);
        y.sum[p * Q + q] += v;
        y.magnitude[p * Q + q] += v < 0 ? -v : v;
      }
  return y;
}

}  // namespace qlora
