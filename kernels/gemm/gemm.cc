#include "kernels/gemm/gemm.h"

#include "kernels/common/rows.h"
#include "kernels/gemm/gemm_blocks.h"
#include "kernels/gemm/gemm_cuda.h"
#include "quant/codebook.h"

#define QLORA_BODY "kernels/gemm/gemm_cpu.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AVX512BF16_BODY "kernels/gemm/gemm_bf16.inl"
#include "kernels/common/for_avx512bf16.h"
#define QLORA_AMX_BODY "kernels/gemm/gemm_bf16.inl"
#include "kernels/common/for_amx.h"

namespace qlora {
namespace {

void check_weight(const char* name, const WeightView& w) {
  check(w.data != nullptr && w.rows >= 0 && w.cols >= 0, name, ": no weight");
  const bool scaled =
      w.absmax_codes != nullptr ? w.nested_absmax != nullptr && w.code_map != nullptr : w.absmax != nullptr;
  switch (w.format) {
    case Format::nf4:
    case Format::fp4:
      check(scaled && w.block_size > 0, name, ": 4-bit weight without its block scales");
      break;
    case Format::int8:
      check(w.absmax != nullptr, name, ": int8 weight without its row scales");
      break;
    case Format::q4_0:
    case Format::q4_1:
    case Format::q8_0:
      check(w.cols % 32 == 0, name, ": GGUF blocks of 32 in rows of ", w.cols);
      break;
    case Format::f32:
    case Format::f16:
    case Format::bf16:
      break;
  }
}

// What computes a task, and how tasks are cut for it.
template <class Call>
struct GemmBody {
  GemmTile tile;
  bool of_bf16;
  void (*part)(const Call&, const GemmPart&, const GemmWorkspace&, float*);
};

// Products of bf16 where the ISA has them and the operands are: fp32 keeps to the vectors.
GemmBody<GemmCall> body_of(const GemmCall& call) {
#if defined(__x86_64__)
  if (multiplies_bf16(active_isa()) && call.terms[0].x.dtype == DType::bf16)
    return {kBf16GemmTile, true, QLORA_PICK_BF16(gemm_part)};
#endif
  return {QLORA_DISPATCH(gemm_tile), false, QLORA_PICK(gemm_part)};
}
GemmBody<GemmTnCall> body_of(const GemmTnCall& call) {
#if defined(__x86_64__)
  if (multiplies_bf16(active_isa()) && call.a.dtype == DType::bf16 && call.b.dtype == DType::bf16)
    return {kBf16GemmTile, true, QLORA_PICK_BF16(gemm_tn_part)};
#endif
  return {QLORA_DISPATCH(gemm_tile), false, QLORA_PICK(gemm_tn_part)};
}

// The tasks of a [rows, cols] output, with their workspace: one worker's memory each.
class GemmRun {
 public:
  template <class Call>
  GemmRun(Exec& e, const GemmBody<Call>& body, int64_t rows, int64_t cols)
      : rows_(rows),
        cols_(cols),
        tile_(body.tile),
        space_(body.tile, body.of_bf16, rows, cols),
        memory_(e.allocate(
            Region::workspace, "gemm workspace",
            sizeof(float) * static_cast<size_t>(space_.floats()) * static_cast<size_t>(e.threads()))) {}
  template <class Call>
  void operator()(Exec& e, const GemmBody<Call>& body, const Call& call) const {
    if (rows_ == 0 || cols_ == 0) return;
    const GemmTasks tasks(tile_, rows_, cols_, e.threads());
    // One block of rows after another, whose x stays near while W passes by in fewer bytes.
    e.parallel(tasks.count(), [&](int64_t task, int worker) {
      const int64_t row = task / tasks.col_groups * tasks.rows, col = task % tasks.col_groups * tasks.cols;
      body.part(call, {row, std::min(tasks.rows, rows_ - row), col, std::min(tasks.cols, cols_ - col)},
                space_, memory_.as<float>() + worker * space_.floats());
    });
  }

 private:
  int64_t rows_, cols_;
  GemmTile tile_;
  GemmWorkspace space_;
  Buffer memory_;
};

void gemm(Exec& e, const char* name, const GemmCall& call) {
  if (e.on_cuda()) return gemm_on_cuda(e, name, call);
  check_gemm(name, call);
  const Mat& y = call.y;
  const auto [flops, read] = gemm_cost(call);
  const GemmBody<GemmCall> body = body_of(call);
  const GemmRun run(e, body, y.rows, y.cols);
  if (e.op(name, flops, read, y.bytes())) run(e, body, call);
}

}  // namespace

void gemm_on_cuda(Exec& e, const char* name, const GemmCall& call) {
  check_gemm(name, call);
  const Mat& y = call.y;
  const auto [flops, read] = gemm_cost(call);
  if (call.ahead != nullptr) call.ahead->ask(e, plan_gemm(call).panel);
  const Buffer space = e.allocate(Region::workspace, "gemm workspace", gemm_workspace(call));
  if (e.op(name, flops, read, y.bytes()) && y.rows > 0 && y.cols > 0) gemm_cuda(e, call, space.data());
}

void check_gemm(const char* name, const GemmCall& call) {
  const Mat& y = call.y;
  check(y && is_activation(y.dtype) && y.stride >= y.cols, name, ": y is no activation");
  check(!call.terms.empty(), name, ": no term");
  const DType dtype = call.terms[0].x.dtype;
  for (const GemmTerm& t : call.terms) {
    check(t.x && is_activation(t.x.dtype) && t.x.stride >= t.x.cols, name, ": x is no activation");
    check(t.x.dtype == dtype, name, ": terms of ", name_of(t.x.dtype), " and ", name_of(dtype));
    check_weight(name, t.w);
    const int64_t N = call.transposed_w ? t.w.rows : t.w.cols, K = call.transposed_w ? t.w.cols : t.w.rows;
    check(t.x.rows == y.rows && t.x.cols == K && N == y.cols, name, ": x [", t.x.rows, ", ", t.x.cols,
          "] w [", t.w.rows, ", ", t.w.cols, "] y [", y.rows, ", ", y.cols, "]");
    check(t.x.data != y.data || y.rows * y.cols == 0, name, ": y is x");
  }
  const ConstMat& residual = call.epilogue.residual;
  if (residual)
    check(is_activation(residual.dtype) && same_shape(residual, y) && residual.stride >= residual.cols, name,
          ": residual [", residual.rows, ", ", residual.cols, "] for y [", y.rows, ", ", y.cols, "]");
}

GemmCost gemm_cost(const GemmCall& call) {
  const Mat& y = call.y;
  double sum_k = 0, read = 0;
  for (const GemmTerm& t : call.terms) {
    sum_k += static_cast<double>(t.x.cols);
    read += t.x.bytes() + t.w.stored_bytes();
  }
  if (call.epilogue.bias != nullptr) read += 4.0 * static_cast<double>(y.cols);
  if (call.epilogue.residual) read += call.epilogue.residual.bytes();
  return {2.0 * static_cast<double>(y.rows) * static_cast<double>(y.cols) * sum_k, read};
}

void gemm_nt(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
             const Mat& y, DecodeAhead* ahead) {
  gemm(e, name, {terms, epilogue, y, true, false, ahead});
}

void gemm_nn(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
             const Mat& y, DecodeAhead* ahead) {
  check(epilogue.bias == nullptr, name, ": a bias in a product that has none");
  gemm(e, name, {terms, epilogue, y, false, false, ahead});
}

void gemm_tn(Exec& e, const char* name, const ConstMat& a, const ConstMat& b, float scale, const Mat& out) {
  check(a && b && is_activation(a.dtype) && is_activation(b.dtype), name, ": a or b is no activation");
  check(out && out.dtype == DType::f32 && out.stride >= out.cols, name, ": out is not fp32");
  check(a.rows == b.rows && out.rows == a.cols && out.cols == b.cols && a.stride >= a.cols &&
            b.stride >= b.cols,
        name, ": a [", a.rows, ", ", a.cols, "] b [", b.rows, ", ", b.cols, "] out [", out.rows, ", ",
        out.cols, "]");
  const double flops =
      2.0 * static_cast<double>(a.rows) * static_cast<double>(a.cols) * static_cast<double>(b.cols);
  const double read = a.bytes() + b.bytes() + out.bytes();
  GemmTnCall call{a, b, scale, out};
  if (e.on_cuda()) {
    const Buffer space = e.allocate(Region::workspace, "gemm workspace", plan_gemm(call).bytes());
    const bool empty = a.rows == 0 || out.rows == 0 || out.cols == 0;
    if (e.op(name, flops, read, out.bytes()) && !empty) gemm_tn_cuda(e, call, space.data());
    return;
  }
  const GemmBody<GemmTnCall> body = body_of(call);
  // Tiles want one operand transposed: the narrower.
  if (body.of_bf16 && a.cols > b.cols) call = {b, a, scale, out, true};
  const GemmRun run(e, body, call.a.cols, call.b.cols);
  if (!e.op(name, flops, read, out.bytes())) return;
  if (a.rows == 0) return;
  run(e, body, call);
}

}  // namespace qlora
