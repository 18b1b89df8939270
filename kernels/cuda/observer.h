#pragma once
#include "memory/cuda/host.h"

namespace qlora::cuda {

struct Matmul;  // kernels/cuda/cublaslt.h

// Is told of everything that is put on streams to compute, right after it was put there: for measurements. At
// most one, set while nothing runs; nobody by default.
class Observer {
 public:
  virtual ~Observer() = default;
  // kernel: its type's name, mangled.
  virtual void launched(Stream& stream, const char* kernel) = 0;
  virtual void multiplied(Stream& stream, const Matmul& product) = 0;
};
inline Observer* observer = nullptr;

inline void observe_launch(Stream& stream, const char* kernel) {
  if (observer != nullptr) [[unlikely]]
    observer->launched(stream, kernel);
}
inline void observe_matmul(Stream& stream, const Matmul& product) {
  if (observer != nullptr) [[unlikely]]
    observer->multiplied(stream, product);
}

}  // namespace qlora::cuda
