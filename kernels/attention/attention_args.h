#pragma once
#include <cstdint>

#include "kernels/attention/attention.h"

// What attention's dispatch hands to its bodies.
namespace qlora::attention {

// Queries and keys of one tile of scores.
inline constexpr int64_t kTile = 64;

// One document, one query head (and its key head).
struct Rows {
  int64_t q_begin, q_count, k_begin, k_count;
  int q_head, k_head;
  int64_t blocks;  // of kTile keys, in the documents before it that are longer than that
  int64_t offset() const { return k_count - q_count; }  // query i stands at key i + offset
};

struct Args {
  AttentionShape shape;
  ConstMat q, k, v, o, d_o;
  const float* lse = nullptr;  // [q_heads, lse_stride]
  int64_t lse_stride = 0;
  float* delta = nullptr;  // on CUDA: [q_heads, q.rows], rowsum(d_o * o)
  Mat out, d_q, d_k, d_v;
  float* lse_out = nullptr;
  char* shared = nullptr;  // blocks of keys, KeyBlocks

  int64_t dim() const { return shape.head_dim; }
  int64_t padded_dim() const { return (shape.head_dim + 15) / 16 * 16; }
  int64_t group() const { return shape.q_heads / shape.kv_heads; }
  int64_t window() const { return shape.window > 0 ? shape.window : INT64_MAX / 4; }
};

// CUDA's bodies. Bounds are checked; a.delta is workspace of the backward pass, which fills it first.
void forward_cuda(Exec& e, const Args& a, const Segments& docs);
void backward_cuda(Exec& e, const Args& a, const Segments& docs);

}  // namespace qlora::attention
