#include "kernels/cuda/decode.h"
#include "kernels/gemm/gemm_cuda.h"

namespace qlora::cuda {
namespace {

// A block's tile of the output and its step along k; a thread has 4 x 4 elements, 16 apart.
constexpr int kTile = 64, kStepK = 16, kStride = kTile + 1, kEach = 4, kSide = kTile / kEach;

struct Fp32Args {
  int64_t count, m, n;  // count: of terms
  float scale;          // of the products' sum, before bias and residual
  const float* bias;
  ConstMat residual;
  Mat y;
};

// One term: element (row of the output, k) of its left operand, and (column, k) of its right one.
struct WeightTerm {
  static constexpr int kMost = kMostGemmTerms;
  ConstMat x;
  Weight w;
  bool transposed;  // gemm_nt
  int64_t k;
  QLORA_DEVICE float left(int64_t m, int64_t i) const { return element(x, m, i); }
  QLORA_DEVICE float right(int64_t n, int64_t i) const {
    return transposed ? decode(w, n, i) : decode(w, i, n);
  }
};
struct PlainTerm {  // gemm_tn
  static constexpr int kMost = 1;
  ConstMat a, b;
  int64_t k;
  QLORA_DEVICE float left(int64_t m, int64_t i) const { return element(a, i, m); }
  QLORA_DEVICE float right(int64_t n, int64_t i) const { return element(b, i, n); }
};

template <class Term>
struct Fp32Kernel {
  static constexpr int kThreads = kSide * kSide;
  static constexpr size_t kShared = 2 * kStepK * kStride * sizeof(float);
  Fp32Args args;
  Term terms[Term::kMost];

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> left = shared.take<float>(kStepK * kStride),
                        right = shared.take<float>(kStepK * kStride);
    const int64_t m0 = int64_t{block_x()} * kTile, n0 = int64_t{block_y()} * kTile;
    const int row = thread() / kSide, col = thread() % kSide;
    float sums[kEach][kEach] = {};
    for (int t = 0; t < args.count; ++t)
      for (int64_t k = 0; k < terms[t].k; k += kStepK) {
        barrier();  // the tiles of the step before are read
        for (int i = thread(); i < kStepK * kTile; i += kThreads) {
          const int at = i / kTile * kStride + i % kTile;
          const int64_t kk = k + i / kTile, m = m0 + i % kTile, n = n0 + i % kTile;
          left[at] = kk < terms[t].k && m < args.m ? terms[t].left(m, kk) : 0.f;
          right[at] = kk < terms[t].k && n < args.n ? terms[t].right(n, kk) : 0.f;
        }
        barrier();
        for (int kk = 0; kk < kStepK; ++kk) {
          float a[kEach], b[kEach];
          for (int i = 0; i < kEach; ++i) {
            a[i] = left[kk * kStride + row + i * kSide];
            b[i] = right[kk * kStride + col + i * kSide];
          }
          for (int i = 0; i < kEach; ++i)
            for (int j = 0; j < kEach; ++j) sums[i][j] = fma(a[i], b[j], sums[i][j]);
        }
      }
    for (int i = 0; i < kEach; ++i)
      for (int j = 0; j < kEach; ++j) store(m0 + row + i * kSide, n0 + col + j * kSide, sums[i][j]);
  }

  QLORA_DEVICE void store(int64_t m, int64_t n, float sum) const {
    if (m >= args.m || n >= args.n) return;
    float f = sum * args.scale;
    if (args.bias != nullptr) f += args.bias[n];
    if (args.residual.data != nullptr) f += element(args.residual, m, n);
    set_element(args.y, m, n, f);
  }
};

template <class Term>
void launch_fp32(Exec& e, const Fp32Kernel<Term>& kernel) {
  launch(e, {ceil_div(kernel.args.m, kTile), ceil_div(kernel.args.n, kTile)}, kernel.kShared, kernel);
}

}  // namespace

void gemm_fp32(Exec& e, const GemmCall& call) {
  Fp32Kernel<WeightTerm> kernel{{static_cast<int64_t>(call.terms.size()), call.y.rows, call.y.cols, 1.f,
                                 call.epilogue.bias, call.epilogue.residual, call.y},
                                {}};
  for (size_t i = 0; i < call.terms.size(); ++i)
    kernel.terms[i] = {call.terms[i].x, Weight(call.terms[i].w), call.transposed_w, call.terms[i].x.cols};
  launch_fp32(e, kernel);
}

void gemm_tn_fp32(Exec& e, const GemmTnCall& call) {
  launch_fp32(
      e, Fp32Kernel<PlainTerm>{{1, call.out.rows, call.out.cols, call.scale, nullptr, call.out, call.out},
                               {{call.a, call.b, call.a.rows}}});
}

}  // namespace qlora::cuda
