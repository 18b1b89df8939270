#pragma once
#include <array>
#include <span>

#include "model/block.h"

namespace qlora {

// q and k between their linears and attention: each head normed where the block has norms of heads, then
// turned by its position.

// From what the linears gave, to q_out and k_out (which may be the same). [T, heads * head_dim], rows without
// gaps.
void turn_heads(Exec& e, const BlockContext& c, std::span<const int32_t> positions, const Mat& q,
                const Mat& k, const Mat& q_out, const Mat& k_out);

// q and k as attention takes them, from a block's saved ones: the same, or made of them for as long as this
// lives.
class TurnedHeads {
 public:
  TurnedHeads(Exec& e, const BlockContext& c, const BlockBatch& b, const SavePolicy& keep,
              const BlockSaved& s);
  ConstMat q() const { return q_ ? q_.view() : saved_.q.view(); }
  ConstMat k() const { return k_ ? k_.view() : saved_.k.view(); }

 private:
  const BlockSaved& saved_;
  Matrix q_, k_;
};

// Whether the saved q and k are as the linears gave them, before norm and turn.
bool saved_raw(const BlockContext& c, const SavePolicy& keep);

// The backward pass of the norms, a tile of rows at a time; buffers for `rows` at most. Weights are frozen:
// no gradient of theirs.
class HeadNorms {
 public:
  // raw: the linears' q and k will be given; else they are computed again.
  HeadNorms(Exec& e, const BlockContext& c, int64_t rows, bool raw);
  // d_q and d_k, gradients of what the norms gave, -> gradients of what the linears gave, valid until the
  // next call. x and s: the linears' input and S; raw_q and raw_k: what they gave, or empty.
  std::array<ConstMat, 2> backward(Exec& e, const BlockContext& c, const ConstMat& x, const ConstMat& s,
                                   const ConstMat& raw_q, const ConstMat& raw_k, const ConstMat& d_q,
                                   const ConstMat& d_k) const;

 private:
  ConstMat through(Exec& e, const BlockContext& c, NormKind kind, const ConstMat& raw, const ConstMat& dy,
                   const Mat& dx) const;
  Matrix q_, k_, dq_, dk_, rstd_;
};

}  // namespace qlora
