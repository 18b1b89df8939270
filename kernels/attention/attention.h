#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// Causal self-attention over documents laid end to end (FlashAttention-2, Dao 2023, arXiv:2307.08691, blocked
// with online softmax; nothing of size [tokens, tokens] exists). Query head h reads key head h / (q_heads /
// kv_heads) (GQA).
struct AttentionShape {
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;    // on q.k
  int window = 0;     // > 0: a query sees the last `window` keys up to its own; 0: all
  float softcap = 0;  // > 0: score = softcap * tanh(score / softcap), after scale
};

// Documents of a batch as cu_seqlens: document d has query rows [q[d], q[d+1]) and key rows [k[d], k[d+1]);
// both ascend from 0. In training they are the same span. A document's last query row stands at its last key
// row (a KV cache has more keys). In rehearsal the bounds are not read: the cost is that of as many documents
// of equal length. Keys of a document without queries have gradients of 0.
struct Segments {
  std::span<const int32_t> q, k;
};

// q [Tq, q_heads*head_dim], k and v [Tk, kv_heads*head_dim] -> o like q, lse fp32 [q_heads, Tq] (log sum exp
// of the scores; may be empty when no backward follows). q, k, v, o share a dtype, fp32 or bf16; scores,
// softmax and sums are fp32; operands of bf16 are multiplied by p and ds rounded to bf16 on CUDA and with the
// ISAs amx and avx512bf16 (as FlashAttention does). Results of a document do not depend on what else is in
// the batch, nor on threads.
void attention_forward(Exec& e, const AttentionShape& s, const Segments& docs, const ConstMat& q,
                       const ConstMat& k, const ConstMat& v, const Mat& o, const Mat& lse);

// dq, dk, dv = (assigned), in q's dtype. `d_o` [Tq, q_heads*head_dim]. d_o, q, k, v, o share a dtype.
// A fixed order of sums: on CUDA two passes (dK and dV, then dQ), else one, whose tasks take turns at what
// they share. dq may be d_o: the last to read a block of its rows, of one head, is the task that then writes
// them. No other aliasing.
void attention_backward(Exec& e, const AttentionShape& s, const Segments& docs, const ConstMat& d_o,
                        const ConstMat& q, const ConstMat& k, const ConstMat& v, const ConstMat& o,
                        const ConstMat& lse, const Mat& dq, const Mat& dk, const Mat& dv);

}  // namespace qlora
