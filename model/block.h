#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/rope/rope.h"
#include "memory/exec.h"
#include "model/desc.h"
#include "model/linear.h"
#include "model/row_tile.h"

namespace qlora {

// Types of a forward and backward pass: what linears and attention take (compute), and what residuals add up
// in (stream).
struct Numerics {
  DType compute = DType::bf16;
  DType stream = DType::f32;
  int64_t row_tile = kRowTile;  // model/row_tile.h
};

// One block's frozen weights.
struct BlockWeights {
  std::array<const float*, kNorms> norm{};  // fp32, of ModelDesc::norm_size; null without
  const float* of(NormKind k) const { return norm[static_cast<size_t>(k)]; }
  std::array<WeightView, kLinears> linear;
  std::array<const float*, kLinears> bias{};  // fp32 [out], null without
};

// What a batch is, to a block: rows are tokens, documents end to end.
struct BlockBatch {
  int64_t tokens = 0;
  int64_t tile_rows = kRowTile;
  int64_t tiles = 1;       // row tiles to go through: the planned number, however few tokens there are
  double whole_tiles = 1;  // how many whole ones the planned tokens make
  Segments docs;
  std::span<const int32_t> positions;
  DropoutRows drop;
};

// A block as the passes see it: description, weights, adapter (pointers into the flat buffers; grads null
// outside training).
struct BlockContext {
  const BlockDesc* desc = nullptr;
  const BlockWeights* weights = nullptr;
  RopeTable rope;
  Numerics numerics;
  std::array<LinearGroup, kGroups> group;
  const LinearGroup& of(Group g) const { return group[static_cast<size_t>(g)]; }
};
BlockContext block_context(const ModelDesc& desc, int block, const BlockWeights& weights,
                           const RopeTable& rope, Numerics numerics, const AdapterLayout& adapter,
                           const float* params, float* grads);

// What becomes of a saved field between the passes. Every choice gives the same bits.
enum class Keep : uint8_t { store, recompute, page };
const char* name_of(Keep k);

// A choice for each group of saved fields that one computation yields. What is not stored is computed again
// by the forward pass's own pieces.
struct SavePolicy {
  Keep input = Keep::store;      // x0: never computed again
  Keep qkv = Keep::store;        // q, k, v, and their S
  Keep attention = Keep::store;  // o, lse
  Keep middle = Keep::store;     // x1, the stream between attention and MLP, and o_proj's S
  Keep mlp = Keep::store;        // gate, up, and S of gate, up and down

  // f(name, choice) for each that may be computed again.
  template <class P, class F>
  static void for_each_choice(P& p, F&& f) {
    f("qkv", p.qkv), f("attention", p.attention), f("middle", p.middle), f("mlp", p.mlp);
  }
  static SavePolicy all(Keep k) { return {k == Keep::page ? k : Keep::store, k, k, k, k}; }
};
inline constexpr int kChoices = 4;
// The input, and what may be computed again, in the order of for_each_choice.
inline constexpr std::array<Keep SavePolicy::*, 1 + kChoices> kSavedGroups = {
    &SavePolicy::input, &SavePolicy::qkv, &SavePolicy::attention, &SavePolicy::middle, &SavePolicy::mlp};

// What forward leaves for backward.
struct BlockSaved {
  Matrix x0;  // [T, dim] stream: the block's input
  // Compute type. q and k have turned; but where they are stored and normed by heads they are as the linears
  // gave them, which the norm's gradient needs: norming and turning again costs next to nothing.
  Matrix q, k, v, s_qkv;
  Matrix o, lse;   // lse fp32 [q_heads, T]
  Matrix x1, s_o;  // x1 stream
  Matrix gate, up, s_gate_up, s_down;
  // Where the fields of a group go, or lie, that leaves memory between the passes (group_bytes); null: they
  // are allocated.
  std::array<std::byte*, kSavedGroups.size()> room{};
  // Every field with its name and what `policy` does with it.
  template <class F>
  void for_each_field(const SavePolicy& p, F&& f) {
    f("x0", x0, p.input);
    f("q", q, p.qkv), f("k", k, p.qkv), f("v", v, p.qkv), f("s_qkv", s_qkv, p.qkv);
    f("o", o, p.attention), f("lse", lse, p.attention);
    f("x1", x1, p.middle), f("s_o", s_o, p.middle);
    f("gate", gate, p.mlp), f("up", up, p.mlp), f("s_gate_up", s_gate_up, p.mlp), f("s_down", s_down, p.mlp);
  }
};

// What the fields of one of kSavedGroups take for so many tokens, end to end.
size_t group_bytes(const BlockContext& c, int64_t tokens, size_t group);

// The forward pass in two parts: q, k, v and attention's output from saved.x0, then the rest.
void block_attend(Exec& e, const BlockContext& c, const BlockBatch& batch, const SavePolicy& keep,
                  BlockSaved& saved);
// -> y [T, dim] (stream type). Fields that `keep` drops are freed before it returns.
void block_finish(Exec& e, const BlockContext& c, const BlockBatch& batch, const SavePolicy& keep,
                  BlockSaved& saved, const Mat& y);

// The mirror of block_attend and block_finish, bottom to top. dx (stream type): in dL/dy, out dL/dx0. With
// input_gradient off (the first block: embeddings are frozen) dx is not carried below the last linear, and
// its content is undefined. Gradients of the adapter +=. saved is consumed.
void block_backward(Exec& e, const BlockContext& c, const BlockBatch& batch, const SavePolicy& keep,
                    BlockSaved& saved, const Mat& dx, bool input_gradient);

// Generation: x [T, dim] is one document's new tokens at `positions`; their keys and values are written to
// rows [past, past + T) of the caches [capacity, kv_dim], which the attention reads. y = the block's output.
struct KvCache {
  Mat k, v;
};
// Several documents, each with a cache of its own: rows [docs[d], docs[d+1]) of x belong to document d, which
// has past[d] rows already. `step`: a row or none a document, so that linears are products of few rows.
void block_infer(Exec& e, const BlockContext& c, std::span<const int32_t> docs, std::span<const int32_t> past,
                 std::span<const KvCache> caches, std::span<const int32_t> positions, bool step,
                 const ConstMat& x, const Mat& y);

}  // namespace qlora
