#include "kernels/cuda/decode.h"
#include "kernels/cuda/rows.h"
#include "kernels/embedding/embedding_args.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row.
template <class T>
struct EmbeddingKernel {
  static constexpr int kThreads = 256;
  const int32_t* ids;
  Weight table;
  float scale;
  Rows<T> y;

  QLORA_DEVICE void operator()(SharedMemory) const {
    T* out = y[block_x()];
    const int64_t id = ids[block_x()];
    for (int64_t j = thread(); j < table.w.cols; j += kThreads)
      out[j] = from_float<T>(decode(table, id, j) * scale);
  }
};

}  // namespace
}  // namespace cuda

void embedding_cuda(Exec& e, const EmbeddingArgs& a) {
  cuda::with_type(a.y.dtype, [&](auto y) {
    using T = decltype(y);
    cuda::launch(e, {a.y.rows}, 0,
                 cuda::EmbeddingKernel<T>{a.ids, cuda::Weight(a.table), a.scale, cuda::rows_of<T>(a.y)});
  });
}

}  // namespace qlora
