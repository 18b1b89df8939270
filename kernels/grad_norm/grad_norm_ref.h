#pragma once
#include <cmath>
#include <cstdint>

namespace qlora::ref {

// The definition.
template <class T>
T l2_norm(int64_t n, const T* x) {
  using std::sqrt;
  T sum = T(0);
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sqrt(sum);
}

}  // namespace qlora::ref
