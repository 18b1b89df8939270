#include "kernels/cuda/rows.h"
#include "kernels/gated_act/gated_act_args.h"

namespace qlora {
namespace cuda {
namespace {

constexpr float kGelu = 2 * 0.79788456f, kCubic = 0.044715f;

// Both activations are x * s with a sigmoid s: gated_act_cpu.inl.
QLORA_DEVICE float gate_of(Activation act, float x) {
  const float z = act == Activation::silu ? x : kGelu * fma(kCubic * (x * x), x, x);
  return 1.f / (1.f + exp(-z));
}

// Derivative of x * s(x), given s.
QLORA_DEVICE float slope_of(Activation act, float x, float s) {
  const float rest = x * (1.f - s);
  if (act == Activation::silu) return fma(s, rest, s);
  return fma(s, rest * (kGelu * fma(3 * kCubic, x * x, 1.f)), s);
}

template <class T>
struct GatedActForwardKernel {
  static constexpr int kThreads = 256;
  Activation act;
  Rows<const T> gate, up;
  Rows<T> h;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const T *g = gate[block_x()], *u = up[block_x()];
    T* out = h[block_x()];
    for (int64_t j = thread(); j < cols; j += kThreads) {
      const float x = to_float(g[j]);
      out[j] = from_float<T>(x * gate_of(act, x) * to_float(u[j]));
    }
  }
};

template <class T>
struct GatedActBackwardKernel {
  static constexpr int kThreads = 256;
  Activation act;
  Rows<const T> d_h, gate, up;
  Rows<T> d_gate, d_up;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const T *dh = d_h[block_x()], *g = gate[block_x()], *u = up[block_x()];
    T *dg = d_gate[block_x()], *du = d_up[block_x()];
    for (int64_t j = thread(); j < cols; j += kThreads) {
      const float d = to_float(dh[j]), x = to_float(g[j]), other = to_float(u[j]);
      const float s = gate_of(act, x);
      dg[j] = from_float<T>(d * other * slope_of(act, x, s));
      du[j] = from_float<T>(d * (x * s));
    }
  }
};

}  // namespace
}  // namespace cuda

void gated_act_forward_cuda(Exec& e, const GatedAct& a) {
  cuda::with_type(a.gate.dtype, [&](auto x) {
    using T = decltype(x);
    cuda::launch(e, {a.gate.rows}, 0,
                 cuda::GatedActForwardKernel<T>{a.act, cuda::rows_of<T>(a.gate), cuda::rows_of<T>(a.up),
                                                cuda::rows_of<T>(a.out0), a.gate.cols});
  });
}

void gated_act_backward_cuda(Exec& e, const GatedAct& a) {
  cuda::with_type(a.gate.dtype, [&](auto x) {
    using T = decltype(x);
    cuda::launch(e, {a.gate.rows}, 0,
                 cuda::GatedActBackwardKernel<T>{a.act, cuda::rows_of<T>(a.d_h), cuda::rows_of<T>(a.gate),
                                                 cuda::rows_of<T>(a.up), cuda::rows_of<T>(a.out0),
                                                 cuda::rows_of<T>(a.out1), a.gate.cols});
  });
}

}  // namespace qlora
