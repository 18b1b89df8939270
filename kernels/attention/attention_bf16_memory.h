#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/attention/attention_keys.h"

// What attention on tiles (attention_bf16.inl) keeps where in one worker's memory. All offsets are multiples
// of 64 bytes.
namespace qlora::attention {

inline constexpr int64_t kPartBytes = 2048;  // 32 columns of 32 bf16 terms: two tiles of a right operand
inline constexpr int64_t kForwardKeys = 2 * kTile;
inline constexpr int64_t kHeadsAtOnce = 4;  // query heads of a group that the backward pass takes together

inline int64_t parts_of(int64_t n) { return (n + 31) / 32; }

// Bytes of rows that are filled up to whole parts; an odd number of lines, off a power of two.
inline int64_t filled_row(int64_t dim) { return (parts_of(dim) | 1) * 64; }

struct ForwardMemory {
  int64_t copy, columns, scores, pairs, sums, top, total, factor, own, bytes;
  explicit ForwardMemory(const Args& a) {
    const int64_t steps = parts_of(a.dim()), padded = a.padded_dim();
    bytes = 0;
    const auto take = [&](int64_t n) { return std::exchange(bytes, bytes + n); };
    copy = take(kTile * filled_row(a.dim()));
    columns = take(kTile / 32 * steps * kPartBytes);
    scores = take(kForwardKeys * kTile * 4);
    pairs = take(kForwardKeys * kTile * 2);
    sums = take(padded * kTile * 4);
    top = take(kTile * 4);
    total = take(kTile * 4);
    factor = take(kTile * 4);
    own = take(KeyBlocks(padded, false).bytes);
  }
};

struct BackwardMemory {
  int64_t q_columns, d_o_columns, lse, delta, sums, head_bytes;  // of each head
  int64_t k_copy, v_copy, heads, q_pairs, d_o_pairs, p, ds, row_bytes, pairs, scores, slopes, own, bytes;
  explicit BackwardMemory(const Args& a) {
    const int64_t steps = parts_of(a.dim()), padded = a.padded_dim();
    const int64_t count = std::min(a.group(), kHeadsAtOnce);
    int64_t at = 0;
    const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
    q_columns = take(kTile / 32 * steps * kPartBytes);
    d_o_columns = take(kTile / 32 * steps * kPartBytes);
    lse = take(kTile * 4);
    delta = take(kTile * 4);
    sums = take(padded * kTile * 4);
    head_bytes = std::exchange(at, 0);
    k_copy = take(kTile * filled_row(a.dim()));
    v_copy = take(kTile * filled_row(a.dim()));
    heads = take(count * head_bytes);
    q_pairs = take(steps * count * kTile / 32 * kPartBytes);
    d_o_pairs = take(steps * count * kTile / 32 * kPartBytes);
    row_bytes = count * kTile * 2 + 64;
    p = take(kTile * row_bytes);
    ds = take(kTile * row_bytes);
    pairs = take(kTile * kTile * 2);
    scores = take(2 * 32 * 32 * 4);
    slopes = take(2 * 32 * 32 * 4);
    own = take(KeyBlocks(padded, true).bytes);
    bytes = at;
  }
};

}  // namespace qlora::attention
