#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace qlora::testing {

// The numbers of the optimizers' reference data (tests/golden/kernels/README.md): element i, tensor k, step
// t.
inline uint32_t optim_hash(uint32_t i, uint32_t k, uint32_t t) {
  uint32_t x = i * 0x9E3779B1u + t * 0x85EBCA77u + k * 0xC2B2AE3Du;
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

inline double optim_uniform(uint32_t x) { return (x >> 8) * std::ldexp(1, -24) - .5; }

inline std::vector<float> optim_params(uint32_t n, uint32_t k) {
  std::vector<float> p;
  for (uint32_t i = 0; i < n; ++i) p.push_back(static_cast<float>(optim_uniform(optim_hash(i, k, 0)) / 8));
  return p;
}

inline std::vector<float> optim_gradient(uint32_t n, uint32_t k, uint32_t t) {
  std::vector<float> g;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t x = optim_hash(i, k, t);
    g.push_back(static_cast<float>(optim_uniform(x) * std::ldexp(1, -static_cast<int>(x & 7))));
  }
  return g;
}

}  // namespace qlora::testing
