#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/dropout/dropout.h"

namespace qlora::ref {

// The definition of which elements are kept: integers only, the same bits everywhere.
//
// A 64-bit key from (seed, step, module, token), each mixed in by the finalizer of splitmix64 (Steele, Lea
// and Flood 2014), so that one bit of any of them changes half of the key. Its halves then enter a 32-bit
// mixer of the column at two places (multipliers: Wellons' lowbias32), which no shift of columns can turn
// from one key's sequence into another's.
constexpr uint64_t dropout_mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t dropout_module_key(const DropoutKey& key) {
  return dropout_mix(dropout_mix(dropout_mix(key.seed) ^ key.step) ^ key.module);
}

constexpr uint64_t dropout_token_key(uint64_t module_key, uint64_t token) {
  return dropout_mix(module_key ^ dropout_mix(token));
}

constexpr uint32_t dropout_bits(uint64_t token_key, uint32_t column) {
  uint32_t x = column * 0x9E3779B1u + static_cast<uint32_t>(token_key);
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) + static_cast<uint32_t>(token_key >> 32);
  x = (x ^ (x >> 13)) * 0x846CA68Bu;
  x = (x ^ (x >> 16)) * 0xC2B2AE35u;
  return x ^ (x >> 15);
}

// An element is dropped where its bits are below this: p * 2^32, rounded.
inline uint32_t dropout_threshold(float p) {
  return static_cast<uint32_t>(std::floor(static_cast<double>(p) * 4294967296. + .5));
}

inline bool dropout_kept(const DropoutKey& key, uint64_t token, uint32_t column) {
  return dropout_bits(dropout_token_key(dropout_module_key(key), token), column) >= dropout_threshold(key.p);
}

// x, y [rows, cols]
template <class T>
void dropout_forward(const DropoutKey& key, int64_t rows, int64_t cols, const uint64_t* tokens, const T* x,
                     T* y) {
  const T scale = T(1 / (1 - static_cast<double>(key.p)));
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < cols; ++j)
      y[t * cols + j] =
          dropout_kept(key, tokens[t], static_cast<uint32_t>(j)) ? x[t * cols + j] * scale : T(0);
}

// dx +=
template <class T>
void dropout_backward(const DropoutKey& key, int64_t rows, int64_t cols, const uint64_t* tokens, const T* dy,
                      T* dx) {
  const T scale = T(1 / (1 - static_cast<double>(key.p)));
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < cols; ++j)
      if (dropout_kept(key, tokens[t], static_cast<uint32_t>(j)))
        dx[t * cols + j] += dy[t * cols + j] * scale;
}

}  // namespace qlora::ref
