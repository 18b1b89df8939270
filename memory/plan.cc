#include "memory/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace qlora {

std::vector<LiveBytes> live_at(const Trace& trace, int64_t time, Place where) {
  std::vector<LiveBytes> live;
  for (const Span& s : trace.spans) {
    if (s.where != where || !s.live_at(time)) continue;
    const auto same = [&](const LiveBytes& l) {
      return l.region == s.region && l.block == s.block && std::strcmp(l.name, s.name) == 0;
    };
    const auto it = std::find_if(live.begin(), live.end(), same);
    if (it == live.end())
      live.push_back({s.region, s.name, s.block, s.bytes});
    else
      it->bytes += s.bytes;
  }
  return live;
}

std::vector<LiveBytes> live_at_peak(const Trace& trace, Place where) {
  return live_at(trace, trace.peak(where).first, where);
}

double OpRates::seconds(const OpCost& op) const {
  const bool attends = std::strncmp(op.name, "attention", 9) == 0;
  return op.flops / (attends ? attention : product) + (op.bytes_read + op.bytes_written) / bandwidth;
}

std::vector<bool> choose(std::span<const Decision> decisions,
                         const std::function<bool(const std::vector<bool>&)>& fits) {
  std::vector<size_t> order(decisions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    // seconds / bytes, without dividing by no bytes
    return decisions[a].seconds * static_cast<double>(decisions[b].bytes) <
           decisions[b].seconds * static_cast<double>(decisions[a].bytes);
  });
  const auto first = [&](size_t n) {
    std::vector<bool> taken(decisions.size(), false);
    for (size_t i = 0; i < n; ++i) taken[order[i]] = true;
    return taken;
  };
  if (!fits(first(order.size()))) return {};
  size_t fails = 0, holds = order.size();  // fewer than `fails` + 1 do not fit, as far as was asked
  if (fits(first(0))) return first(0);
  while (holds - fails > 1) {
    const size_t middle = fails + (holds - fails) / 2;
    (fits(first(middle)) ? holds : fails) = middle;
  }
  std::vector<bool> taken = first(holds);
  std::vector<size_t> undo(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(holds));
  std::stable_sort(undo.begin(), undo.end(),
                   [&](size_t a, size_t b) { return decisions[a].seconds > decisions[b].seconds; });
  for (const size_t i : undo) {
    taken[i] = false;
    if (!fits(taken)) taken[i] = true;
  }
  return taken;
}

}  // namespace qlora
