#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>

#include "kernels/attention/attention_args.h"

// What attention on tiles (attention_bf16.inl) keeps where: one worker's memory, and blocks of kTile keys
// that tasks share. All offsets are multiples of 64 bytes.
namespace qlora::attention {

inline constexpr int64_t kPartBytes = 2048;  // 32 columns of 32 bf16 terms: two tiles of a right operand
inline constexpr int64_t kForwardKeys = 2 * kTile;
inline constexpr int64_t kHeadsAtOnce = 4;  // query heads of a group that the backward pass takes together

inline int64_t parts_of(int64_t n) { return (n + 31) / 32; }

// Bytes of rows that are filled up to whole parts; an odd number of lines, off a power of two.
inline int64_t filled_row(int64_t dim) { return (parts_of(dim) | 1) * 64; }

// The keys of one block and key head.
struct KeyBlock {
  char* across;    // k (backward) or v (forward) as [padded head, kTile] bf16, zeros behind the document
  float *dk, *dv;  // [kTile, padded head]: sums so far
  int32_t* turn;   // how many have added to them
};

// Blocks one behind the other, each with its parts.
struct KeyBlocks {
  int64_t across, dk, dv, turn, bytes;
  KeyBlocks(int64_t padded, bool backward) {
    bytes = 0;
    const auto take = [&](int64_t n) { return std::exchange(bytes, bytes + n); };
    across = take(padded * kTile * 2);
    dk = take(backward ? padded * kTile * 4 : 0);
    dv = take(backward ? padded * kTile * 4 : 0);
    turn = take(backward ? 64 : 0);
  }
  KeyBlock at(char* p) const {
    return {p + across, reinterpret_cast<float*>(p + dk), reinterpret_cast<float*>(p + dv),
            reinterpret_cast<int32_t*>(p + turn)};
  }
};

// Returns when `turn` others have added: tasks with smaller numbers, which have begun.
inline void await_turn(int32_t* turn, int32_t mine) {
  constexpr int kSpins = 1000;
  const std::atomic_ref<int32_t> now(*turn);
  for (int i = 0; now.load(std::memory_order_acquire) != mine; ++i)
    if (i >= kSpins) std::this_thread::yield();
}
inline void end_turn(int32_t* turn) {
  std::atomic_ref<int32_t>(*turn).fetch_add(1, std::memory_order_release);
}

// Documents of one block are their worker's own; so many blocks have the others at most, of which each is
// longer than kTile: ceil(n / kTile) is no more than 2 n / (kTile + 1) then.
inline int64_t shared_blocks(int64_t rows, int64_t documents) {
  return std::min((rows + (kTile - 1) * documents) / kTile, 2 * rows / (kTile + 1));
}

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
