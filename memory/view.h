#pragma once
#include <cstdint>

#include "memory/dtype.h"
#include "memory/error.h"

namespace qlora {

// A row-major matrix that somebody else owns: [rows, cols] elements of one dtype, rows `stride` elements
// apart (stride >= cols, so that a matrix may be some columns of a wider one). Tokens are rows.
struct ConstMat {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0, stride = 0;

  ConstMat() = default;
  ConstMat(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride) {}
  template <class T>
  ConstMat(const T* data, int64_t rows, int64_t cols)
      : data(data), dtype(dtype_of<T>), rows(rows), cols(cols), stride(cols) {}

  explicit operator bool() const { return data != nullptr; }
  template <class T>
  const T* row(int64_t i) const {
    return static_cast<const T*>(data) + i * stride;
  }
  ConstMat row_range(int64_t begin, int64_t count) const {
    check(begin >= 0 && count >= 0 && begin + count <= rows, "row range ", begin, "+", count, " of ", rows);
    return {static_cast<const char*>(data) + begin * stride * static_cast<int64_t>(size_of(dtype)), dtype,
            count, cols, stride};
  }
  ConstMat col_range(int64_t begin, int64_t count) const {
    check(begin >= 0 && count >= 0 && begin + count <= cols, "column range ", begin, "+", count, " of ",
          cols);
    return {static_cast<const char*>(data) + begin * static_cast<int64_t>(size_of(dtype)), dtype, rows, count,
            stride};
  }
  double bytes() const { return static_cast<double>(rows) * cols * size_of(dtype); }
};

// The same, writable.
struct Mat {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0, stride = 0;

  Mat() = default;
  Mat(void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride) {}
  template <class T>
  Mat(T* data, int64_t rows, int64_t cols)
      : data(data), dtype(dtype_of<T>), rows(rows), cols(cols), stride(cols) {}

  operator ConstMat() const { return {data, dtype, rows, cols, stride}; }
  explicit operator bool() const { return data != nullptr; }
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride;
  }
  Mat row_range(int64_t begin, int64_t count) const {
    const ConstMat m = ConstMat(*this).row_range(begin, count);
    return {const_cast<void*>(m.data), dtype, m.rows, m.cols, stride};
  }
  Mat col_range(int64_t begin, int64_t count) const {
    const ConstMat m = ConstMat(*this).col_range(begin, count);
    return {const_cast<void*>(m.data), dtype, m.rows, m.cols, stride};
  }
  double bytes() const { return ConstMat(*this).bytes(); }
};

}  // namespace qlora
