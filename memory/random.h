#pragma once
#include <cstdint>

namespace qlora {

// SplitMix64's finalizer (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): a
// bijection of 64 bits. Random numbers are counter functions of what they are for, never a generator's state,
// so that nothing has to be replayed or stored.
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Number `index` of the stream `key`.
inline uint64_t random_bits(uint64_t key, uint64_t index) {
  return mix64(key + 0x9e3779b97f4a7c15u * (index + 1));
}

// Uniform in [0, 1): the upper 53 bits.
inline double unit_interval(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace qlora
