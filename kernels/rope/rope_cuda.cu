#include "kernels/cuda/rows.h"
#include "kernels/rope/rope_args.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row, a thread a pair at a time.
template <class T>
struct RopeKernel {
  static constexpr int kThreads = 256;
  Rows<T> x;
  const float *cos, *sin;
  const int32_t* positions;
  int heads, head_dim, half;
  bool inverse;

  QLORA_DEVICE void operator()(SharedMemory) const {
    T* row = x[block_x()];
    const int64_t table = int64_t{positions[block_x()]} * half;
    for (int p = thread(); p < heads * half; p += kThreads) {
      const int i = p % half;
      T& first = row[p / half * head_dim + i];
      T& second = row[p / half * head_dim + i + half];
      const float a = to_float(first), b = to_float(second), c = cos[table + i];
      const float s = inverse ? -sin[table + i] : sin[table + i];
      first = from_float<T>(fma(a, c, -(b * s)));
      second = from_float<T>(fma(b, c, a * s));
    }
  }
};

}  // namespace
}  // namespace cuda

void rope_cuda(Exec& e, const RopeArgs& a) {
  cuda::with_type(a.x.dtype, [&](auto x) {
    using T = decltype(x);
    cuda::launch(e, {a.x.rows}, 0,
                 cuda::RopeKernel<T>{cuda::rows_of<T>(a.x), a.table.cos, a.table.sin, a.positions, a.heads,
                                     a.head_dim, a.table.rotary_dims / 2, a.inverse});
  });
}

}  // namespace qlora
