#pragma once
#include "kernels/attention/attention.h"

namespace qlora {

// attention_forward for a step of generation: one query, which sees all keys of a cache (the last `window` of
// them). Nothing is cut into tiles, so that a step costs little more than reading the cache once a query
// head.
//
// q [1, q_heads*head_dim] (or no row: then nothing is done), k and v [T, kv_heads*head_dim], T > 0 -> o like
// q; one dtype, fp32 or bf16. Scores, softmax and sums are fp32, in an order that depends on shapes and ISA
// alone. o aliases nothing. Category::internal on shapes that do not fit. On a CUDA device head_dim is a
// multiple of 8, up to 256, and a sum over more than kStepKeys keys is one of parts, in their order.
void attention_step(Exec& e, const AttentionShape& s, const ConstMat& q, const ConstMat& k, const ConstMat& v,
                    const Mat& o);

}  // namespace qlora
