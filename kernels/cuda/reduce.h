#pragma once
#include "kernels/cuda/device.h"

namespace qlora::cuda {

// Over a warp, in every lane: a tree of a fixed shape, the same bits in all of them.
template <class T>
QLORA_DEVICE T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
QLORA_DEVICE float warp_max(float x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = max(x, shuffle_xor(x, mask));
  return x;
}

// Over a block of kThreads, in every thread; the warps' sums are added up in order. scratch: kThreads / 32,
// free again afterwards.
template <int kThreads, class T>
QLORA_DEVICE T block_sum(T x, Shared<T> scratch) {
  x = warp_sum(x);
  if (lane() == 0) scratch[warp()] = x;
  barrier();
  T sum = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) sum += scratch[w];
  barrier();
  return sum;
}
template <int kThreads>
QLORA_DEVICE float block_max(float x, Shared<float> scratch) {
  x = warp_max(x);
  if (lane() == 0) scratch[warp()] = x;
  barrier();
  float most = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) most = max(most, scratch[w]);
  barrier();
  return most;
}

}  // namespace qlora::cuda
