#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>

#include "kernels/attention/attention_args.h"

// Blocks of kTile keys that attention's tasks share, and how they take turns at them.
namespace qlora::attention {

// The keys of one block and key head.
struct KeyBlock {
  char* across;    // on tiles: k (backward) or v (forward) as [padded head, kTile] bf16, zeros behind the
                   // document
  float *dk, *dv;  // [kTile, padded head]: sums so far
  int32_t* turn;   // how many have added to them
};

// Blocks one behind the other, each with its parts.
struct KeyBlocks {
  int64_t across, dk, dv, turn, bytes;
  KeyBlocks(int64_t padded, bool backward, bool on_tiles = true) {
    bytes = 0;
    const auto take = [&](int64_t n) { return std::exchange(bytes, bytes + n); };
    across = take(on_tiles ? padded * kTile * 2 : 0);
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

// The key blocks of one document and key head. own: where the only block of a document that has one lies.
struct DocumentKeys {
  KeyBlocks blocks;
  char *at, *own;
  int64_t step;
  DocumentKeys(const Args& a, const Rows& d, const KeyBlocks& blocks, char* own)
      : blocks(blocks),
        at(a.shared + (d.blocks * a.shape.kv_heads + d.k_head) * blocks.bytes),
        own(d.k_count <= kTile ? own : nullptr),
        step(a.shape.kv_heads * blocks.bytes) {}
  KeyBlock operator[](int64_t key) const { return blocks.at(own ? own : at + key / kTile * step); }
};

// The turn of a task that holds `queries` of the document's, of its head's takes `take` out of `takes`, at
// the block of keys from `key` on: the last block of queries that sees these keys is their first to add.
inline int64_t turn_of(const Args& a, const Rows& d, int64_t key, int64_t query, int64_t take,
                       int64_t takes) {
  const int64_t last = std::min((d.q_count - 1) / kTile, (key + kTile - 2 + a.window() - d.offset()) / kTile);
  return (last - query / kTile) * takes + take;
}

}  // namespace qlora::attention
