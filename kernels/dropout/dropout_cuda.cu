#include "kernels/cuda/rows.h"
#include "kernels/dropout/dropout_args.h"
#include "kernels/dropout/dropout_ref.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row.
template <class TX, class TY, bool kAdd>
struct DropoutKernel {
  static constexpr int kThreads = 256;
  uint64_t module_key;
  uint32_t threshold;
  float scale;
  const uint64_t* tokens;
  Rows<const TX> x;
  Rows<TY> y;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const TX* in = x[block_x()];
    TY* out = y[block_x()];
    const uint64_t key = ref::dropout_token_key(module_key, tokens[block_x()]);
    for (int64_t j = thread(); j < cols; j += kThreads) {
      const bool keep = ref::dropout_bits(key, static_cast<uint32_t>(j)) >= threshold;
      const float kept = keep ? to_float(in[j]) * scale : 0.f;
      out[j] = from_float<TY>(kAdd ? to_float(out[j]) + kept : kept);
    }
  }
};

template <bool kAdd>
void launch_dropout(Exec& e, const DropoutArgs& a) {
  with_type(a.x.dtype, [&](auto x) {
    with_type(a.y.dtype, [&](auto y) {
      using X = decltype(x);
      using Y = decltype(y);
      launch(e, {a.x.rows}, 0,
             DropoutKernel<X, Y, kAdd>{a.module_key, a.threshold, a.scale, a.tokens, rows_of<X>(a.x),
                                       rows_of<Y>(a.y), a.x.cols});
    });
  });
}

}  // namespace
}  // namespace cuda

void dropout_forward_cuda(Exec& e, const DropoutArgs& a) { cuda::launch_dropout<false>(e, a); }
void dropout_backward_cuda(Exec& e, const DropoutArgs& a) { cuda::launch_dropout<true>(e, a); }

}  // namespace qlora
