#include "model/turned_heads.h"

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows/rows.h"

namespace qlora {
namespace {

// [rows, heads * n] as [rows * heads, n]: a row a head.
ConstMat by_heads(const ConstMat& m, int64_t n) {
  check(m.stride == m.cols && m.cols % n == 0, "heads of ", n, " in ", m.cols, " columns");
  return {m.data, m.dtype, m.rows * (m.cols / n), n, n};
}
Mat by_heads(const Mat& m, int64_t n) {
  const ConstMat heads = by_heads(ConstMat(m), n);
  return {m.data, m.dtype, heads.rows, n, n};
}

void norm_heads(Exec& e, const BlockContext& c, NormKind kind, const ConstMat& x, const Mat& y, float* rstd) {
  const BlockDesc& d = *c.desc;
  rms_norm_forward(e, by_heads(x, d.head_dim), c.weights->of(kind), d.norm_offset, d.norm_eps,
                   by_heads(y, d.head_dim), rstd);
}

}  // namespace

void turn_heads(Exec& e, const BlockContext& c, std::span<const int32_t> positions, const Mat& q,
                const Mat& k, const Mat& q_out, const Mat& k_out) {
  const BlockDesc& d = *c.desc;
  if (d.qk_norm) {
    norm_heads(e, c, NormKind::q, q, q_out, nullptr);
    norm_heads(e, c, NormKind::k, k, k_out, nullptr);
  }
  rope(e, c.rope, positions, d.q_heads, d.head_dim, false, q_out);
  rope(e, c.rope, positions, d.kv_heads, d.head_dim, false, k_out);
}

bool saved_raw(const BlockContext& c, const SavePolicy& keep) {
  return c.desc->qk_norm && keep.qkv != Keep::recompute;
}

TurnedHeads::TurnedHeads(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
                         const BlockSaved& s)
    : saved_(s) {
  if (!saved_raw(c, keep)) return;
  q_ = e.matrix(Region::workspace, "q", c.numerics.compute, b.tokens, c.desc->q_dim());
  k_ = e.matrix(Region::workspace, "k", c.numerics.compute, b.tokens, c.desc->kv_dim());
  turn_heads(e, c, b.positions, s.q, s.k, q_, k_);
}

HeadNorms::HeadNorms(Exec& e, const BlockContext& c, int64_t rows, bool raw) {
  const BlockDesc& d = *c.desc;
  const auto tile = [&](const char* name, int64_t cols) {
    return e.matrix(Region::workspace, name, c.numerics.compute, rows, cols);
  };
  if (!raw) q_ = tile("q_raw", d.q_dim()), k_ = tile("k_raw", d.kv_dim());
  dq_ = tile("dq_raw", d.q_dim());
  dk_ = tile("dk_raw", d.kv_dim());
  rstd_ = e.matrix(Region::workspace, "rstd", DType::f32, 1, rows * std::max(d.q_heads, d.kv_heads));
}

ConstMat HeadNorms::through(Exec& e, const BlockContext& c, NormKind kind, const ConstMat& raw,
                            const ConstMat& dy, const Mat& dx) const {
  const BlockDesc& d = *c.desc;
  float* const rstd = rstd_.view().row<float>(0);
  norm_heads(e, c, kind, raw, dx, rstd);  // for rstd alone
  zero_rows(e, dx);
  rms_norm_backward(e, by_heads(dy, d.head_dim), by_heads(raw, d.head_dim), c.weights->of(kind),
                    d.norm_offset, rstd, by_heads(dx, d.head_dim));
  return dx;
}

std::array<ConstMat, 2> HeadNorms::backward(Exec& e, const BlockContext& c, const ConstMat& x,
                                            const ConstMat& s, const ConstMat& raw_q, const ConstMat& raw_k,
                                            const ConstMat& d_q, const ConstMat& d_k) const {
  const auto rows = [&](const Matrix& m) { return m.view().row_range(0, x.rows); };
  ConstMat q = raw_q, k = raw_k;
  if (q_) {
    const std::array<Mat, 2> again{rows(q_), rows(k_)};
    linear_up(e, c.of(Group::qkv), x, s, again, {});
    q = again[0], k = again[1];
  }
  return {through(e, c, NormKind::q, q, d_q, rows(dq_)), through(e, c, NormKind::k, k, d_k, rows(dk_))};
}

}  // namespace qlora
