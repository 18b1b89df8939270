#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/decode.h"
#include "kernels/gemm/gemm_cuda.h"

namespace qlora::cuda {
namespace {

// The terms' x, side by side: a block some hundred groups of eight elements of a row.
struct PackKernel {
  static constexpr int kThreads = 128;
  struct Part {
    const bf16* data;
    int64_t stride, end;  // end: its last column in `out`, and one
  };
  Part parts[kMostGemmTerms];
  bf16* out;
  int64_t cols, first_row;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t row = first_row + block_y(), col = (int64_t{block_x()} * kThreads + thread()) * kPer;
    if (col >= cols) return;
    int part = 0;
    int64_t begin = 0;
    for (; col >= parts[part].end; ++part) begin = parts[part].end;
    *reinterpret_cast<Eight*>(out + row * cols + col) =
        *reinterpret_cast<const Eight*>(parts[part].data + row * parts[part].stride + col - begin);
  }
};

// y = sums + bias + residual, rounded to y's type. sums may be y, residual may be y.
struct FinishKernel {
  static constexpr int kThreads = 256;
  ConstMat sums;
  const float* bias;
  ConstMat residual;
  Mat y;
  int64_t first_row;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t row = first_row + block_y(), col = int64_t{block_x()} * kThreads + thread();
    if (col >= y.cols) return;
    float f = element(sums, row, col);
    if (bias != nullptr) f += bias[col];
    if (residual.data != nullptr) f += element(residual, row, col);
    set_element(y, row, col, f);
  }
};

// kernel for rows [row, row + n) of [0, rows): as many blocks as a grid has, `across` of them on a row.
template <class Kernel>
void launch_rows(Exec& e, int64_t rows, int64_t across, Kernel kernel) {
  for (kernel.first_row = 0; kernel.first_row < rows; kernel.first_row += 65535)
    launch(e, {across, std::min<int64_t>(65535, rows - kernel.first_row)}, 0, kernel);
}

// The sum of all terms as one product over a longer k.
struct Operands {
  const bf16 *x, *w;
  int64_t x_stride, w_stride, k;
};

// One term: x where it lies.
Operands one_term(const GemmTerm& t, const DecodedWeights& decoded) {
  const auto* x = static_cast<const bf16*>(t.x.data);
  if (is_decoded(t.w)) return {x, static_cast<const bf16*>(t.w.data), t.x.stride, t.w.cols, t.x.cols};
  const int64_t stride = decoded_stride(t.w);
  decoded.decode(t.w, decoded.data(), stride);
  return {x, decoded.data(), t.x.stride, stride, t.x.cols};
}

// All of them: [X|S] and [W|sB] (or, not transposed, [W;A]), W decoded into its place.
Operands all_terms(Exec& e, const GemmCall& call, const GemmSpace& space, const DecodedWeights& decoded) {
  auto* const x = reinterpret_cast<bf16*>(space.packed);
  bf16* const w = decoded.data();
  PackKernel pack{{}, x, 0, 0};
  int64_t k = 0;
  for (const GemmTerm& t : call.terms) k += t.x.cols;
  const int64_t stride = call.transposed_w ? k : call.y.cols;
  int parts = 0;
  for (const GemmTerm& t : call.terms) {
    if (t.x.cols == 0) continue;
    check(parts < kMostGemmTerms, "gemm: more than ", kMostGemmTerms, " terms");
    decoded.decode(t.w, w + (call.transposed_w ? pack.cols : pack.cols * stride), stride);
    pack.cols += t.x.cols;
    pack.parts[parts++] = {static_cast<const bf16*>(t.x.data), t.x.stride, pack.cols};
  }
  launch_rows(e, call.y.rows, ceil_div(k, kPer * PackKernel::kThreads), pack);
  return {x, w, k, stride, k};
}

}  // namespace

void gemm_library(Exec& e, const GemmCall& call, const GemmSpace& space) {
  const Mat& y = call.y;
  const bool fp32 = sums_in_fp32(call), apart = fp32 && y.dtype != DType::f32;
  const Mat to = apart ? Mat(reinterpret_cast<float*>(space.sums), y.rows, y.cols) : y;
  ConstMat residual = call.epilogue.residual;
  Matmul m{.m = y.rows, .n = y.cols, .a_by_k = false, .b_by_k = !call.transposed_w, .c = {}, .d = to};
  if (residual && residual.dtype == to.dtype) {
    m.beta = 1;
    m.c = residual;
    residual = {};
  }
  const auto add = [&](const Operands& o, const DecodedWeights& decoded) {
    decoded.ready();
    m.a = o.x, m.b = o.w;
    m.a_stride = o.x_stride, m.b_stride = o.w_stride, m.k = o.k;
    matmul(e, m, space.library);
    decoded.read();
    m.beta = 1;
    m.c = to;
  };
  if (!fp32 && terms_of(call) > 1) {
    const DecodedWeights decoded(e, space.ahead ? call.ahead : nullptr, space.decoded);
    add(all_terms(e, call, space, decoded), decoded);
  } else {
    for (const GemmTerm& t : call.terms) {
      if (t.x.cols == 0) continue;
      const DecodedWeights decoded = decoded_weight(e, call, t, space);
      add(one_term(t, decoded), decoded);
    }
  }
  if (apart || call.epilogue.bias != nullptr || residual)
    launch_rows(e, y.rows, ceil_div(y.cols, FinishKernel::kThreads),
                FinishKernel{to, call.epilogue.bias, residual, y, 0});
}

void gemm_tn_library(Exec& e, const GemmTnCall& call, const GemmSpace& space) {
  matmul(e,
         {.m = call.out.rows,
          .n = call.out.cols,
          .k = call.a.rows,
          .a = static_cast<const bf16*>(call.a.data),
          .a_stride = call.a.stride,
          .a_by_k = true,
          .b = static_cast<const bf16*>(call.b.data),
          .b_stride = call.b.stride,
          .b_by_k = true,
          .alpha = call.scale,
          .beta = 1,
          .c = call.out,
          .d = call.out},
         space.library);
}

}  // namespace qlora::cuda
