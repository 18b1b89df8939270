#pragma once
#include <cmath>
#include <cstdint>

namespace qlora::ref {

// The definition. x, y [rows, cols], w [cols], rstd [rows].
template <class T>
void rms_norm_forward(int64_t rows, int64_t cols, const T* x, const T* w, T offset, T eps, T* y, T* rstd) {
  using std::sqrt;
  for (int64_t i = 0; i < rows; ++i) {
    T squares = T(0);
    for (int64_t j = 0; j < cols; ++j) squares += x[i * cols + j] * x[i * cols + j];
    rstd[i] = T(1) / sqrt(squares / T(static_cast<double>(cols)) + eps);
    for (int64_t j = 0; j < cols; ++j) y[i * cols + j] = x[i * cols + j] * rstd[i] * (offset + w[j]);
  }
}

// dx +=
template <class T>
void rms_norm_backward(int64_t rows, int64_t cols, const T* dy, const T* x, const T* w, T offset,
                       const T* rstd, T* dx) {
  for (int64_t i = 0; i < rows; ++i) {
    T dot = T(0);
    for (int64_t j = 0; j < cols; ++j) dot += dy[i * cols + j] * (offset + w[j]) * x[i * cols + j];
    const T k = dot * rstd[i] * rstd[i] * rstd[i] / T(static_cast<double>(cols));
    for (int64_t j = 0; j < cols; ++j)
      dx[i * cols + j] += dy[i * cols + j] * (offset + w[j]) * rstd[i] - x[i * cols + j] * k;
  }
}

}  // namespace qlora::ref
