#include "model/block.h"

#include <algorithm>
#include <optional>

#include "kernels/attention/attention_step.h"
#include "kernels/gated_act/gated_act.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows/rows.h"
#include "model/turned_heads.h"

namespace qlora {
namespace {

// The rows of tile t: none once the tokens run out.
struct Tile {
  int64_t begin, rows;
  Tile(const BlockBatch& b, int64_t t)
      : begin(std::min(t * b.tile_rows, b.tokens)), rows(std::min(b.tile_rows, b.tokens - begin)) {}
  Mat of(const Mat& m) const { return m.row_range(begin, rows); }
  ConstMat of(const ConstMat& m) const { return m.row_range(begin, rows); }
  DropoutRows of(const DropoutRows& d) const { return d.row_range(begin, rows); }
};

// f(tile) for all of them.
template <class F>
void for_tiles(Exec& e, const BlockBatch& b, F&& f) {
  e.loop(b.tiles, b.whole_tiles, [&](int64_t t) { f(Tile(b, t)); });
}

int64_t tile_rows(const BlockBatch& b) { return std::min(b.tile_rows, b.tokens); }

Mat first_rows(const Matrix& m, int64_t rows) { return m.view().row_range(0, rows); }

AttentionShape attention_shape(const BlockDesc& d) {
  return {d.q_heads, d.kv_heads, d.head_dim, d.attn_scale, d.window, d.softcap};
}

// y1 = norm1(x0), tile by tile, for f(tile, y1, rstd).
template <class F>
void for_normed_tiles(Exec& e, const BlockContext& c, const BlockBatch& b, const ConstMat& x,
                      const float* weight, F&& f) {
  const Matrix y = e.matrix(Region::workspace, "normed", c.numerics.compute, tile_rows(b), c.desc->dim);
  const Matrix rstd = e.matrix(Region::workspace, "rstd", DType::f32, 1, tile_rows(b));
  for_tiles(e, b, [&](const Tile& t) {
    const Mat rows = first_rows(y, t.rows);
    rms_norm_forward(e, t.of(x), weight, c.desc->norm_offset, c.desc->norm_eps, rows,
                     rstd.view().row<float>(0));
    f(t, rows, rstd.view().row<float>(0));
  });
}

// Of kSavedGroups.
enum SavedGroup : size_t { kInput, kQkv, kAttention, kMiddle, kMlp };

// f(field, name, type, rows, columns) for the fields of a group.
template <class F>
void for_fields(const BlockContext& c, int64_t tokens, size_t group, BlockSaved& s, F&& f) {
  const BlockDesc& d = *c.desc;
  const DType compute = c.numerics.compute;
  switch (group) {
    case kInput:
      f(s.x0, "x0", c.numerics.stream, tokens, d.dim);
      break;
    case kQkv:
      f(s.q, "q", compute, tokens, d.q_dim());
      f(s.k, "k", compute, tokens, d.kv_dim());
      f(s.v, "v", compute, tokens, d.kv_dim());
      f(s.s_qkv, "s_qkv", compute, tokens, c.of(Group::qkv).rank_sum);
      break;
    case kAttention:
      f(s.o, "o", compute, tokens, d.q_dim());
      f(s.lse, "lse", DType::f32, int64_t{d.q_heads}, tokens);
      break;
    case kMiddle:
      f(s.x1, "x1", c.numerics.stream, tokens, d.dim);
      f(s.s_o, "s_o", compute, tokens, c.of(Group::o).rank_sum);
      break;
    case kMlp:
      f(s.gate, "gate", compute, tokens, d.ff);
      f(s.up, "up", compute, tokens, d.ff);
      f(s.s_gate_up, "s_gate_up", compute, tokens, c.of(Group::gate_up).rank_sum);
      f(s.s_down, "s_down", compute, tokens, c.of(Group::down).rank_sum);
      break;
  }
}

size_t field_bytes(DType type, int64_t rows, int64_t cols) {
  const size_t bytes = static_cast<size_t>(rows * cols) * size_of(type);
  return (bytes + Trace::kAlign - 1) / Trace::kAlign * Trace::kAlign;
}

// Room for the fields of a group: in its page, or allocated.
void make_fields(Exec& e, const BlockContext& c, const BlockBatch& b, size_t group, BlockSaved& s) {
  std::byte* at = s.room[group];
  for_fields(c, b.tokens, group, s,
             [&](Matrix& field, const char* name, DType t, int64_t rows, int64_t cols) {
               if (s.room[group] == nullptr) {
                 field = e.matrix(Region::activations, name, t, rows, cols);
                 return;
               }
               field = {Buffer{}, Mat(at, t, rows, cols, cols)};
               at += field_bytes(t, rows, cols);
             });
}

// q, k, v from x0.
void fill_qkv(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep, BlockSaved& s) {
  if (s.q.view()) return;
  const LinearGroup& g = c.of(Group::qkv);
  make_fields(e, c, b, kQkv, s);
  for_normed_tiles(e, c, b, s.x0, c.weights->of(NormKind::attention),
                   [&](const Tile& t, const Mat& y1, const float*) {
                     const std::array<Mat, 3> out{t.of(s.q.view()), t.of(s.k.view()), t.of(s.v.view())};
                     linear_forward(e, g, t.of(b.drop), y1, t.of(s.s_qkv.view()), out, {});
                   });
  if (!saved_raw(c, keep)) turn_heads(e, c, b.positions, s.q, s.k, s.q, s.k);
}

// o, lse from q, k, v.
void fill_attention(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
                    BlockSaved& s) {
  if (s.o.view()) return;
  const TurnedHeads heads(e, c, b, keep, s);
  make_fields(e, c, b, kAttention, s);
  attention_forward(e, attention_shape(*c.desc), b.docs, heads.q(), heads.k(), s.v, s.o, s.lse);
}

// x1 = x0 + o_proj(o).
void fill_middle(Exec& e, const BlockContext& c, const BlockBatch& b, BlockSaved& s) {
  if (s.x1.view()) return;
  const LinearGroup& g = c.of(Group::o);
  make_fields(e, c, b, kMiddle, s);
  for_tiles(e, b, [&](const Tile& t) {
    const Mat out = t.of(s.x1.view());
    linear_forward(e, g, t.of(b.drop), t.of(s.o.view()), t.of(s.s_o.view()), {&out, 1}, t.of(s.x0.view()));
  });
}

// One tile's gate, up and the S's of the MLP: rows of the saved fields where they are kept, else of a tile's
// own.
struct MlpRows {
  Mat gate, up, s_gate_up, s_down;
};
struct MlpBuffers {
  Matrix gate, up, s_gate_up, s_down;
  MlpBuffers(Exec& e, const BlockContext& c, int64_t rows)
      : gate(e.matrix(Region::workspace, "gate", c.numerics.compute, rows, c.desc->ff)),
        up(e.matrix(Region::workspace, "up", c.numerics.compute, rows, c.desc->ff)),
        s_gate_up(e.matrix(Region::workspace, "s_gate_up", c.numerics.compute, rows,
                           c.of(Group::gate_up).rank_sum)),
        s_down(e.matrix(Region::workspace, "s_down", c.numerics.compute, rows, c.of(Group::down).rank_sum)) {}
  MlpRows rows(int64_t n) const {
    return {first_rows(gate, n), first_rows(up, n), first_rows(s_gate_up, n), first_rows(s_down, n)};
  }
};
MlpRows saved_rows(const BlockSaved& s, const Tile& t) {
  return {t.of(s.gate.view()), t.of(s.up.view()), t.of(s.s_gate_up.view()), t.of(s.s_down.view())};
}

// gate and up from y2.
void mlp_up(Exec& e, const BlockContext& c, const DropoutRows& drop, const Mat& y2, const MlpRows& m) {
  const std::array<Mat, 2> out{m.gate, m.up};
  linear_forward(e, c.of(Group::gate_up), drop, y2, m.s_gate_up, out, {});
}

// y = x1 + down(act(gate) * up), gate and up kept or a tile's.
void mlp_forward(Exec& e, const BlockContext& c, const BlockBatch& b, bool keep, BlockSaved& s,
                 const Mat& y) {
  if (keep) make_fields(e, c, b, kMlp, s);
  const MlpBuffers once(e, c, keep ? 0 : tile_rows(b));
  const Matrix h = e.matrix(Region::workspace, "h", c.numerics.compute, tile_rows(b), c.desc->ff);
  for_normed_tiles(
      e, c, b, s.x1, c.weights->of(NormKind::mlp), [&](const Tile& t, const Mat& y2, const float*) {
        const MlpRows m = keep ? saved_rows(s, t) : once.rows(t.rows);
        mlp_up(e, c, t.of(b.drop), y2, m);
        const Mat h_rows = first_rows(h, t.rows), out = t.of(y);
        gated_act_forward(e, c.desc->activation, m.gate, m.up, h_rows);
        linear_forward(e, c.of(Group::down), t.of(b.drop), h_rows, m.s_down, {&out, 1}, t.of(s.x1.view()));
      });
}

// dx as the linears take it: itself when the types agree, else a rounded copy of the tile.
ConstMat rounded(Exec& e, const Mat& dx, const Mat& scratch) {
  if (dx.dtype == scratch.dtype) return dx;
  cast_rows(e, dx, scratch);
  return scratch;
}

// The MLP's half, tile by tile: dx = dL/dy -> dL/dx1.
void mlp_backward(Exec& e, const BlockContext& c, const BlockBatch& b, bool kept, BlockSaved& s,
                  const Mat& dx) {
  const BlockDesc& d = *c.desc;
  const DType compute = c.numerics.compute;
  const int64_t rows = tile_rows(b);
  const Matrix h = e.matrix(Region::workspace, "h", compute, rows, d.ff);
  const Matrix dh = e.matrix(Region::workspace, "dh", compute, rows, d.ff);
  const Matrix dy = e.matrix(Region::workspace, "dy", compute, rows, d.dim);
  const Matrix dy2 = e.matrix(Region::workspace, "dy2", DType::f32, rows, d.dim);
  const MlpBuffers again(e, c, kept ? 0 : rows);
  for_normed_tiles(e, c, b, s.x1, c.weights->of(NormKind::mlp),
                   [&](const Tile& t, const Mat& y2, const float* rstd) {
                     const DropoutRows drop = t.of(b.drop);
                     const MlpRows m = kept ? saved_rows(s, t) : again.rows(t.rows);
                     const Mat h_rows = first_rows(h, t.rows), dh_rows = first_rows(dh, t.rows),
                               dy2_rows = first_rows(dy2, t.rows), dx_rows = t.of(dx);
                     if (!kept) mlp_up(e, c, drop, y2, m);
                     gated_act_forward(e, d.activation, m.gate, m.up, h_rows);
                     if (!kept) lora_down(e, c.of(Group::down), drop, h_rows, m.s_down);
                     const ConstMat dy_rows = rounded(e, dx_rows, first_rows(dy, t.rows));
                     linear_backward(e, c.of(Group::down), drop, h_rows, m.s_down, {&dy_rows, 1}, dh_rows);
                     gated_act_backward(e, d.activation, dh_rows, m.gate, m.up, m.gate, m.up);
                     const std::array<ConstMat, 2> d_gate_up{m.gate, m.up};
                     linear_backward(e, c.of(Group::gate_up), drop, y2, m.s_gate_up, d_gate_up, dy2_rows);
                     rms_norm_backward(e, dy2_rows, t.of(s.x1.view()), c.weights->of(NormKind::mlp),
                                       d.norm_offset, rstd, dx_rows);
                   });
}

// o_proj: dx = dL/dx1 (which also goes on, as the residual) -> d_o.
void out_backward(Exec& e, const BlockContext& c, const BlockBatch& b, const BlockSaved& s, const Mat& dx,
                  const Mat& d_o) {
  const Matrix dy = e.matrix(Region::workspace, "dy", c.numerics.compute, tile_rows(b), c.desc->dim);
  for_tiles(e, b, [&](const Tile& t) {
    const ConstMat dy_rows = rounded(e, t.of(dx), first_rows(dy, t.rows));
    linear_backward(e, c.of(Group::o), t.of(b.drop), t.of(s.o.view()), t.of(s.s_o.view()), {&dy_rows, 1},
                    t.of(d_o));
  });
}

// q, k, v: dx += through the stream's norm.
void qkv_backward(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
                  const BlockSaved& s, const std::array<ConstMat, 3>& d_qkv, const Mat& dx,
                  bool input_gradient) {
  const Matrix dy1 = e.matrix(Region::workspace, "dy1", DType::f32, tile_rows(b), c.desc->dim);
  const bool raw = saved_raw(c, keep);
  std::optional<HeadNorms> norms;
  if (c.desc->qk_norm) norms.emplace(e, c, tile_rows(b), raw);
  for_normed_tiles(
      e, c, b, s.x0, c.weights->of(NormKind::attention),
      [&](const Tile& t, const Mat& y1, const float* rstd) {
        std::array<ConstMat, 3> rows{t.of(d_qkv[0]), t.of(d_qkv[1]), t.of(d_qkv[2])};
        if (norms) {
          const auto [dq, dk] =
              norms->backward(e, c, y1, t.of(s.s_qkv.view()), raw ? ConstMat(t.of(s.q.view())) : ConstMat{},
                              raw ? ConstMat(t.of(s.k.view())) : ConstMat{}, rows[0], rows[1]);
          rows[0] = dq, rows[1] = dk;
        }
        const Mat dy1_rows = input_gradient ? first_rows(dy1, t.rows) : Mat{};
        linear_backward(e, c.of(Group::qkv), t.of(b.drop), y1, t.of(s.s_qkv.view()), rows, dy1_rows);
        if (input_gradient)
          rms_norm_backward(e, dy1_rows, t.of(s.x0.view()), c.weights->of(NormKind::attention),
                            c.desc->norm_offset, rstd, t.of(dx));
      });
}

}  // namespace

const char* name_of(Keep k) { return k == Keep::store ? "store" : k == Keep::page ? "page" : "recompute"; }

BlockContext block_context(const ModelDesc& desc, int block, const BlockWeights& weights,
                           const RopeTable& rope, Numerics numerics, const AdapterLayout& adapter,
                           const float* params, float* grads) {
  BlockContext c;
  c.desc = &desc.blocks[static_cast<size_t>(block)];
  c.weights = &weights;
  c.rope = rope;
  c.numerics = numerics;
  for (int g = 0; g < kGroups; ++g) {
    LinearGroup& group = c.group[static_cast<size_t>(g)];
    for (LinearKind k : members(static_cast<Group>(g))) {
      LinearGroup::Member& m = group.member[static_cast<size_t>(group.count++)];
      m.w = weights.linear[static_cast<size_t>(k)];
      m.bias = weights.bias[static_cast<size_t>(k)];
      group.in = desc.in_features(block, k);
      const LoraModule* lora = adapter.find(block, k);
      if (lora == nullptr) continue;
      if (group.rank_sum == 0) {
        group.a = params == nullptr ? nullptr : params + lora->a;
        group.da = grads == nullptr ? nullptr : grads + lora->a;
      }
      m.rank = lora->rank;
      m.s_col = group.rank_sum;
      m.scale = lora->scale;
      m.b = params == nullptr ? nullptr : params + lora->b;
      m.db = grads == nullptr ? nullptr : grads + lora->b;
      m.module = lora->index;
      group.rank_sum += lora->rank;
    }
  }
  return c;
}

size_t group_bytes(const BlockContext& c, int64_t tokens, size_t group) {
  BlockSaved none;
  size_t bytes = 0;
  for_fields(c, tokens, group, none, [&](Matrix&, const char*, DType t, int64_t rows, int64_t cols) {
    bytes += field_bytes(t, rows, cols);
  });
  return bytes;
}

void block_attend(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
                  BlockSaved& s) {
  fill_qkv(e, c, b, keep, s);
  fill_attention(e, c, b, keep, s);
}

void block_finish(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep, BlockSaved& s,
                  const Mat& y) {
  fill_middle(e, c, b, s);
  mlp_forward(e, c, b, keep.mlp != Keep::recompute, s, y);
  s.for_each_field(keep, [](const char*, Matrix& field, Keep k) {
    if (k != Keep::store) field.reset();
  });
}

void block_backward(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
                    BlockSaved& s, const Mat& dx, bool input_gradient) {
  const BlockDesc& d = *c.desc;
  const DType compute = c.numerics.compute;
  for (const size_t group : {kQkv, kAttention, kMiddle, kMlp})
    if (keep.*kSavedGroups[group] == Keep::page) make_fields(e, c, b, group, s);
  fill_qkv(e, c, b, keep, s);
  fill_attention(e, c, b, keep, s);
  fill_middle(e, c, b, s);

  mlp_backward(e, c, b, keep.mlp != Keep::recompute, s, dx);
  s.gate.reset(), s.up.reset(), s.s_gate_up.reset(), s.s_down.reset(), s.x1.reset();

  const Matrix dq = e.matrix(Region::workspace, "dq", compute, b.tokens, d.q_dim());  // d_o at first
  out_backward(e, c, b, s, dx, dq);
  s.s_o.reset();

  const Matrix dk = e.matrix(Region::workspace, "dk", compute, b.tokens, d.kv_dim());
  const Matrix dv = e.matrix(Region::workspace, "dv", compute, b.tokens, d.kv_dim());
  {
    const TurnedHeads heads(e, c, b, keep, s);
    attention_backward(e, attention_shape(d), b.docs, dq, heads.q(), heads.k(), s.v, s.o, s.lse, dq, dk, dv);
  }
  s.v.reset(), s.o.reset(), s.lse.reset();
  if (!saved_raw(c, keep)) s.q.reset(), s.k.reset();
  rope(e, c.rope, b.positions, d.q_heads, d.head_dim, true, dq);
  rope(e, c.rope, b.positions, d.kv_heads, d.head_dim, true, dk);

  qkv_backward(e, c, b, keep, s, {dq, dk, dv}, dx, input_gradient);
  s.q.reset(), s.k.reset(), s.s_qkv.reset(), s.x0.reset();
}

void block_infer(Exec& e, const BlockContext& c, std::span<const int32_t> docs, std::span<const int32_t> past,
                 std::span<const KvCache> caches, std::span<const int32_t> positions, bool step,
                 const ConstMat& x, const Mat& y) {
  const BlockDesc& d = *c.desc;
  const DType compute = c.numerics.compute;
  const int64_t rows = x.rows;
  const auto workspace = [&](const char* name, int64_t cols) {
    return e.matrix(Region::workspace, name, compute, rows, cols);
  };
  const Matrix normed = workspace("normed", d.dim), q = workspace("q", d.q_dim()),
               k = workspace("k", d.kv_dim()), v = workspace("v", d.kv_dim());
  const Matrix o = workspace("o", d.q_dim()), gate = workspace("gate", d.ff), up = workspace("up", d.ff);
  std::array<Matrix, kGroups> s;
  for (size_t g = 0; g < s.size(); ++g) s[g] = workspace("s", c.group[g].rank_sum);
  const auto linear = [&](Group g, const ConstMat& in, std::span<const Mat> out, const ConstMat& residual) {
    if (step)
      linear_step(e, c.of(g), in, s[static_cast<size_t>(g)], out, residual);
    else
      linear_forward(e, c.of(g), {}, in, s[static_cast<size_t>(g)], out, residual);
  };

  rms_norm_forward(e, x, c.weights->of(NormKind::attention), d.norm_offset, d.norm_eps, normed, nullptr);
  linear(Group::qkv, normed, std::array<Mat, 3>{q, k, v}, {});
  turn_heads(e, c, positions, q, k, q, k);
  for (size_t i = 0; i < caches.size(); ++i) {
    const int64_t begin = docs[i], n = docs[i + 1] - docs[i];
    cast_rows(e, k.view().row_range(begin, n), caches[i].k.row_range(past[i], n));
    cast_rows(e, v.view().row_range(begin, n), caches[i].v.row_range(past[i], n));
    const int32_t q_rows[2] = {0, static_cast<int32_t>(n)},
                  k_rows[2] = {0, static_cast<int32_t>(past[i] + n)};
    const Mat q_new = q.view().row_range(begin, n), o_new = o.view().row_range(begin, n);
    const Mat keys = caches[i].k.row_range(0, past[i] + n), values = caches[i].v.row_range(0, past[i] + n);
    if (step)
      attention_step(e, attention_shape(d), q_new, keys, values, o_new);
    else
      attention_forward(e, attention_shape(d), {q_rows, k_rows}, q_new, keys, values, o_new, {});
  }
  const Mat y_out = y;
  linear(Group::o, o, {&y_out, 1}, x);  // y is x1 from here on
  rms_norm_forward(e, y, c.weights->of(NormKind::mlp), d.norm_offset, d.norm_eps, normed, nullptr);
  linear(Group::gate_up, normed, std::array<Mat, 2>{gate, up}, {});
  gated_act_forward(e, d.activation, gate, up, gate);
  linear(Group::down, gate, {&y_out, 1}, y);
}

}  // namespace qlora
