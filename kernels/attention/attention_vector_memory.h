#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/attention/attention_keys.h"

// What attention on vectors (attention_cpu.inl) keeps where in one worker's memory, in bytes. All offsets are
// multiples of 64.
namespace qlora::attention {

// Query heads of a group that a task takes together, so that keys are packed once for all: as many as keep
// the task near.
inline int64_t vector_heads(const Args& a) {
  return std::min(a.group(), std::max<int64_t>(1, 256 / a.padded_dim()));
}

struct VectorForward {
  int64_t q, sums, top, total, head_bytes;  // of each head
  int64_t heads, k, v, scores, factor, bytes;
  explicit VectorForward(const Args& a) {
    const int64_t rows = kTile * a.padded_dim() * 4;
    int64_t at = 0;
    const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
    q = take(rows);
    sums = take(rows);
    top = take(kTile * 4);
    total = take(kTile * 4);
    head_bytes = std::exchange(at, 0);
    heads = take(vector_heads(a) * head_bytes);
    k = take(rows);
    v = take(rows);
    scores = take(kTile * kTile * 4);
    factor = take(kTile * 4);
    bytes = at;
  }
};

struct VectorBackward {
  int64_t q, q_across, d_o, d_o_across, sums, lse, delta, head_bytes;  // of each head
  int64_t heads, k, v, p, ds, own, bytes;
  explicit VectorBackward(const Args& a) {
    const int64_t rows = kTile * a.padded_dim() * 4;
    int64_t at = 0;
    const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
    q = take(rows);
    q_across = take(rows);
    d_o = take(rows);
    d_o_across = take(rows);
    sums = take(rows);
    lse = take(kTile * 4);
    delta = take(kTile * 4);
    head_bytes = std::exchange(at, 0);
    heads = take(vector_heads(a) * head_bytes);
    k = take(rows);
    v = take(rows);
    p = take(kTile * kTile * 4);
    ds = take(kTile * kTile * 4);
    own = take(KeyBlocks(a.padded_dim(), true, false).bytes);
    bytes = at;
  }
};

}  // namespace qlora::attention
