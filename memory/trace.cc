#include "memory/trace.h"

#include <algorithm>

namespace qlora {

const char* name_of(Region r) {
  switch (r) {
    case Region::base:
      return "base";
    case Region::adapter:
      return "adapter";
    case Region::gradients:
      return "gradients";
    case Region::moments:
      return "moments";
    case Region::activations:
      return "activations";
    case Region::workspace:
      return "workspace";
    case Region::logits:
      return "logits";
    case Region::staging:
      return "staging";
    case Region::data:
      return "data";
  }
  return "?";
}

void Trace::lay_out() {
  std::vector<Span*> order;
  for (Span& s : spans) order.push_back(&s);
  std::stable_sort(order.begin(), order.end(),
                   [](const Span* a, const Span* b) { return a->bytes > b->bytes; });
  bytes = 0;
  std::vector<Span*> placed;  // by offset
  for (Span* s : order) {
    size_t at = 0;
    for (const Span* p : placed) {
      if (p->born >= s->died || s->born >= p->died) continue;
      if (at + s->bytes <= p->offset) break;
      at = std::max(at, p->offset + p->bytes);
    }
    s->offset = at;
    placed.insert(std::upper_bound(placed.begin(), placed.end(), s,
                                   [](const Span* a, const Span* b) { return a->offset < b->offset; }),
                  s);
    bytes = std::max(bytes, at + s->bytes);
  }
  laid_out = true;
}

size_t Trace::peak_live_bytes() const {
  std::vector<std::pair<int64_t, int64_t>> events;  // time, change
  for (const Span& s : spans) {
    events.emplace_back(s.born, static_cast<int64_t>(s.bytes));
    events.emplace_back(s.died, -static_cast<int64_t>(s.bytes));
  }
  std::sort(events.begin(), events.end());
  int64_t live = 0, peak = 0;
  for (const auto& [time, change] : events) peak = std::max(peak, live += change);
  return static_cast<size_t>(peak);
}

double Trace::flops() const {
  double f = 0;
  for (const OpCost& o : ops) f += o.flops;
  return f;
}

}  // namespace qlora
