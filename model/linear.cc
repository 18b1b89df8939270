#include "model/linear.h"

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_few.h"

namespace qlora {
namespace {

WeightView fp32_weight(const float* data, int64_t rows, int64_t cols, float scale) {
  WeightView w;
  w.format = Format::f32;
  w.rows = rows;
  w.cols = cols;
  w.data = data;
  w.scale = scale;
  return w;
}

DropoutKey of_module(const DropoutRows& drop, uint32_t module) {
  DropoutKey key = drop.key;
  key.module = module;
  return key;
}

// The adapted members one by one, with A [rank, in]: with dropout each has an input of its own.
template <class F>
void for_each_adapted(const LinearGroup& g, F&& f) {
  for (int i = 0; i < g.count; ++i) {
    const LinearGroup::Member& m = g.member[static_cast<size_t>(i)];
    if (m.rank > 0) f(i, m, g.a + m.s_col * g.in, g.da == nullptr ? nullptr : g.da + m.s_col * g.in);
  }
}

// y_i of the first y.size() members, from x and S, by product(terms, epilogue, y_i).
template <class Product>
void up_by(const Product& product, const LinearGroup& g, const ConstMat& x, const ConstMat& s,
           std::span<const Mat> y, const ConstMat& residual) {
  check(static_cast<int>(y.size()) <= g.count, "linear: ", y.size(), " outputs of ", g.count);
  for (size_t i = 0; i < y.size(); ++i) {
    const LinearGroup::Member& m = g.member[i];
    std::array<GemmTerm, 2> terms{GemmTerm{x, m.w}, GemmTerm{}};
    if (m.rank > 0) terms[1] = {s.col_range(m.s_col, m.rank), fp32_weight(m.b, m.w.rows, m.rank, m.scale)};
    const GemmEpilogue epilogue{m.bias, i == 0 ? residual : ConstMat{}};
    product(std::span<const GemmTerm>(terms.data(), m.rank > 0 ? 2u : 1u), epilogue, y[i]);
  }
}

}  // namespace

void lora_down(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x, const Mat& s) {
  if (g.rank_sum == 0) return;
  if (drop.key.p == 0) {
    const GemmTerm term{x, fp32_weight(g.a, g.rank_sum, g.in, 1)};
    gemm_nt(e, "lora_down", {&term, 1}, {}, s);
    return;
  }
  const Matrix dropped = e.matrix(Region::workspace, "dropped", x.dtype, x.rows, x.cols);
  for_each_adapted(g, [&](int, const LinearGroup::Member& m, const float* a, float*) {
    dropout_forward(e, of_module(drop, m.module), drop.places, x, dropped);
    const GemmTerm term{dropped, fp32_weight(a, m.rank, g.in, 1)};
    gemm_nt(e, "lora_down", {&term, 1}, {}, s.col_range(m.s_col, m.rank));
  });
}

void linear_forward(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x, const Mat& s,
                    std::span<const Mat> y, const ConstMat& residual) {
  check(static_cast<int>(y.size()) == g.count, "linear_forward: ", y.size(), " outputs of ", g.count);
  lora_down(e, g, drop, x, s);
  linear_up(e, g, x, s, y, residual);
}

void linear_step(Exec& e, const LinearGroup& g, const ConstMat& x, const Mat& s, std::span<const Mat> y,
                 const ConstMat& residual) {
  if (g.rank_sum > 0) {
    const GemmTerm term{x, fp32_weight(g.a, g.rank_sum, g.in, 1)};
    gemm_few_nt(e, "lora_down", {&term, 1}, {}, s);
  }
  up_by(
      [&](auto terms, const auto& epilogue, const Mat& to) { gemm_few_nt(e, "linear", terms, epilogue, to); },
      g, x, s, y, residual);
}

void linear_up(Exec& e, const LinearGroup& g, const ConstMat& x, const ConstMat& s, std::span<const Mat> y,
               const ConstMat& residual) {
  up_by([&](auto terms, const auto& epilogue,
            const Mat& to) { gemm_nt(e, "linear", terms, epilogue, to, g.ahead); },
        g, x, s, y, residual);
}

void linear_backward(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x,
                     const ConstMat& s, std::span<const ConstMat> dy, const Mat& dx) {
  check(static_cast<int>(dy.size()) == g.count, "linear_backward: ", dy.size(), " gradients of ", g.count);
  const bool drops = drop.key.p > 0;
  const Matrix ds = e.matrix(Region::workspace, "ds", x.dtype, x.rows, g.rank_sum);
  for_each_adapted(g, [&](int i, const LinearGroup::Member& m, const float*, float*) {
    const ConstMat& d = dy[static_cast<size_t>(i)];
    const GemmTerm term{d, fp32_weight(m.b, m.w.rows, m.rank, m.scale)};
    gemm_nn(e, "lora_ds", {&term, 1}, {}, ds.view().col_range(m.s_col, m.rank));
    gemm_tn(e, "lora_db", d, s.col_range(m.s_col, m.rank), m.scale, Mat(m.db, m.w.rows, m.rank));
  });
  if (g.rank_sum > 0 && !drops) gemm_tn(e, "lora_da", ds, x, 1, Mat(g.da, g.rank_sum, g.in));

  if (dx) {
    std::array<GemmTerm, 4> terms;
    size_t n = 0;
    for (int i = 0; i < g.count; ++i)
      terms[n++] = {dy[static_cast<size_t>(i)], g.member[static_cast<size_t>(i)].w};
    if (g.rank_sum > 0 && !drops) terms[n++] = {ds, fp32_weight(g.a, g.rank_sum, g.in, 1)};
    gemm_nn(e, "linear_dx", {terms.data(), n}, {}, dx, g.ahead);
  }
  if (!drops || g.rank_sum == 0) return;
  const Matrix wide = e.matrix(Region::workspace, "dropped", x.dtype, x.rows, x.cols);
  for_each_adapted(g, [&](int, const LinearGroup::Member& m, const float* a, float* da) {
    const DropoutKey key = of_module(drop, m.module);
    const ConstMat ds_m = ds.view().col_range(m.s_col, m.rank);
    dropout_forward(e, key, drop.places, x, wide);
    gemm_tn(e, "lora_da", ds_m, wide, 1, Mat(da, m.rank, g.in));
    if (!dx) return;
    const GemmTerm term{ds_m, fp32_weight(a, m.rank, g.in, 1)};
    gemm_nn(e, "lora_dx", {&term, 1}, {}, wide);
    dropout_backward(e, key, drop.places, wide, dx);
  });
}

}  // namespace qlora
