#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/generate.h"

namespace qlora {
namespace {

int32_t largest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void penalize(std::span<float> logits, std::span<const int32_t> seen, float penalty) {
  std::vector<int32_t> ids(seen.begin(), seen.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (int32_t id : ids) {
    float& l = logits[static_cast<size_t>(id)];
    l = l < 0 ? l * penalty : l / penalty;
  }
}

}  // namespace

int32_t sample(const Sampling& s, std::span<float> logits, std::span<const int32_t> seen, double unit) {
  if (s.repetition_penalty != 1) penalize(logits, seen, s.repetition_penalty);
  if (s.greedy) return largest(logits);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] != logits[static_cast<size_t>(b)]
               ? logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]
               : a < b;
  };
  const size_t k = s.top_k > 0 ? std::min(order.size(), static_cast<size_t>(s.top_k)) : order.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(), more_likely);
  order.resize(k);

  std::vector<double> p(k);
  double total = 0;
  const double top = logits[static_cast<size_t>(order[0])];
  for (size_t i = 0; i < k; ++i)
    total += p[i] = std::exp((logits[static_cast<size_t>(order[i])] - top) / s.temperature);
  // top-p keeps the shortest head whose mass reaches it; min-p what is at least that share of the likeliest.
  size_t keep = 0;
  double mass = 0;
  while (keep < k && (keep == 0 || mass < s.top_p * total)) mass += p[keep++];
  while (keep > 1 && p[keep - 1] < s.min_p * p[0]) mass -= p[--keep];
  double at = unit * mass;
  for (size_t i = 0; i < keep; ++i) {
    at -= p[i];
    if (at < 0) return order[i];
  }
  return order[keep - 1];
}

}  // namespace qlora
