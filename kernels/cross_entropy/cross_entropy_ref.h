#pragma once
#include <cmath>
#include <cstdint>

namespace qlora::ref {

// The definition, one row [vocab] of raw logits: returns the loss; gradient (where not null) = its gradient
// to raw, times grad_scale.
template <class T>
T cross_entropy(int64_t vocab, const T* raw, int64_t label, T softcap, T grad_scale, T* gradient, bool* hit) {
  using std::exp;
  using std::log;
  using std::tanh;
  const bool capped = softcap > T(0);
  const auto score = [&](int64_t j) { return capped ? softcap * tanh(raw[j] / softcap) : raw[j]; };
  int64_t best = 0;
  for (int64_t j = 1; j < vocab; ++j)
    if (score(j) > score(best)) best = j;
  *hit = best == label;
  T sum = T(0);
  for (int64_t j = 0; j < vocab; ++j) sum += exp(score(j) - score(best));
  const T loss = log(sum) + score(best) - score(label);
  for (int64_t j = 0; gradient != nullptr && j < vocab; ++j) {
    const T t = capped ? tanh(raw[j] / softcap) : T(0);
    const T p = exp(score(j) - score(best)) / sum;
    gradient[j] = (p - T(j == label ? 1. : 0.)) * (T(1) - t * t) * grad_scale;
  }
  return loss;
}

}  // namespace qlora::ref
