#include "kernels/cuda/rows.h"
#include "kernels/rows/rows_args.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row; T is any type of the elements' size.
template <class T>
struct CopyRowsKernel {
  static constexpr int kThreads = 256;
  Rows<const T> x;
  const int32_t* from;
  Rows<T> y;
  const int32_t* to;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int i = block_x();
    const T* in = x[from != nullptr ? from[i] : i];
    T* out = y[to != nullptr ? to[i] : i];
    for (int64_t j = thread(); j < cols; j += kThreads) out[j] = in[j];
  }
};

template <class T>
struct ZeroRowsKernel {
  static constexpr int kThreads = 256;
  Rows<T> y;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    T* out = y[block_x()];
    for (int64_t j = thread(); j < cols; j += kThreads) out[j] = T(0);
  }
};

template <class TX, class TY>
struct CastRowsKernel {
  static constexpr int kThreads = 256;
  Rows<const TX> x;
  Rows<TY> y;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const TX* in = x[block_x()];
    TY* out = y[block_x()];
    for (int64_t j = thread(); j < cols; j += kThreads) out[j] = from_float<TY>(to_float(in[j]));
  }
};

// f(x) with an x of an integer as long as an element.
template <class F>
void with_size(DType t, F&& f) {
  switch (size_of(t)) {
    case 1:
      return f(uint8_t());
    case 2:
      return f(uint16_t());
    case 4:
      return f(uint32_t());
    default:
      return f(uint64_t());
  }
}

}  // namespace
}  // namespace cuda

void copy_rows_cuda(Exec& e, const ConstMat& x, const int32_t* from, const Mat& y, const int32_t* to,
                    int64_t count) {
  cuda::with_size(x.dtype, [&](auto element) {
    using T = decltype(element);
    cuda::launch(e, {count}, 0,
                 cuda::CopyRowsKernel<T>{cuda::rows_of<T>(x), from, cuda::rows_of<T>(y), to, x.cols});
  });
}

void zero_rows_cuda(Exec& e, const Mat& y) {
  cuda::with_size(y.dtype, [&](auto element) {
    using T = decltype(element);
    cuda::launch(e, {y.rows}, 0, cuda::ZeroRowsKernel<T>{cuda::rows_of<T>(y), y.cols});
  });
}

void cast_rows_cuda(Exec& e, const ConstMat& x, const Mat& y) {
  cuda::with_type(x.dtype, [&](auto a) {
    cuda::with_type(y.dtype, [&](auto b) {
      using X = decltype(a);
      using Y = decltype(b);
      cuda::launch(e, {x.rows}, 0,
                   cuda::CastRowsKernel<X, Y>{cuda::rows_of<X>(x), cuda::rows_of<Y>(y), x.cols});
    });
  });
}

}  // namespace qlora
