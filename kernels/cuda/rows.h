#pragma once
#include <utility>

#include "kernels/cuda/device.h"
#include "memory/view.h"

namespace qlora::cuda {

// Rows of a matrix as a kernel takes them.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  QLORA_DEVICE T* operator[](int64_t i) const { return data + i * stride; }
};

template <class T>
Rows<T> rows_of(const Mat& m) {
  return {static_cast<T*>(m.data), m.stride};
}
template <class T>
Rows<const T> rows_of(const ConstMat& m) {
  return {static_cast<const T*>(m.data), m.stride};
}

// f(x) with an x of the type of an activation.
template <class F>
void with_type(DType t, F&& f) {
  t == DType::bf16 ? f(bf16()) : f(float());
}

}  // namespace qlora::cuda
