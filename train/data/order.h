#pragma once
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "memory/random.h"

namespace qlora {

// What a stream of random numbers is for; part of its key, so that streams of one seed are unrelated.
enum class OrderStream : uint64_t { epoch = 1, packing = 2, evaluation = 3 };

// A stream of random numbers that is a function of (seed, stream, index, count so far) alone: the same with
// every compiler and library, unlike std::shuffle and the std distributions.
class OrderRng {
 public:
  OrderRng(uint64_t seed, OrderStream stream, uint64_t index)
      : key_(mix64(mix64(mix64(seed + kGolden) + static_cast<uint64_t>(stream) * kGolden) +
                   index * kGolden)) {}
  uint64_t next() { return mix64(key_ + kGolden * ++count_); }
  // Uniform in [0, n), n > 0: values of the last, incomplete run of n are drawn again.
  uint64_t below(uint64_t n) {
    const uint64_t unfair = (UINT64_MAX % n + 1) % n;  // 2^64 mod n
    uint64_t x = next();
    while (x > UINT64_MAX - unfair) x = next();
    return x % n;
  }

 private:
  static constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  uint64_t key_, count_ = 0;
};

// [0, n) in an order drawn by (seed, stream, index): Fisher and Yates.
inline std::vector<uint32_t> permutation(uint32_t n, uint64_t seed, OrderStream stream, uint64_t index) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  OrderRng rng(seed, stream, index);
  for (uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
  return order;
}

}  // namespace qlora
