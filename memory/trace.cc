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

const char* name_of(Place p) {
  switch (p) {
    case Place::device:
      return "device";
    case Place::host:
      return "host";
    case Place::file:
      return "file";
  }
  return "?";
}

namespace {

// The extent of the spans that lie there.
size_t pack(std::vector<Span>& spans, Place where) {
  std::vector<Span*> order;
  for (Span& s : spans)
    if (s.where == where) order.push_back(&s);
  std::stable_sort(order.begin(), order.end(),
                   [](const Span* a, const Span* b) { return a->bytes > b->bytes; });
  struct Placed {  // what the search reads, side by side
    int64_t born, died;
    size_t begin, end;
  };
  size_t bytes = 0;
  std::vector<Placed> placed;  // by their beginnings
  placed.reserve(order.size());
  for (Span* s : order) {
    size_t at = 0;
    for (const Placed& p : placed) {
      if (p.born >= s->died || s->born >= p.died) continue;
      if (at + s->bytes <= p.begin) break;
      at = std::max(at, p.end);
    }
    s->offset = at;
    const Placed here{s->born, s->died, at, at + s->bytes};
    placed.insert(std::upper_bound(placed.begin(), placed.end(), here,
                                   [](const Placed& x, const Placed& y) { return x.begin < y.begin; }),
                  here);
    bytes = std::max(bytes, here.end);
  }
  return bytes;
}

}  // namespace

void Trace::lay_out() {
  bytes = pack(spans, Place::device);
  host_bytes = pack(spans, Place::host);
  laid_out = true;
}

std::pair<int64_t, size_t> Trace::peak(Place where) const {
  // Every event is a birth or a death, so each time has one change.
  std::vector<int64_t> change(static_cast<size_t>(now) + 1, 0);
  for (const Span& s : spans) {
    if (s.where != where) continue;
    change[static_cast<size_t>(s.born)] += static_cast<int64_t>(s.bytes);
    if (s.died != kForever) change[static_cast<size_t>(s.died)] -= static_cast<int64_t>(s.bytes);
  }
  int64_t live = 0, most = 0, when = 0;
  for (size_t t = 0; t < change.size(); ++t)
    if (live += change[t]; live > most) {
      most = live;
      when = static_cast<int64_t>(t);
    }
  return {when, static_cast<size_t>(most)};
}

double Trace::flops() const {
  double f = 0;
  for (const OpCost& o : ops) f += o.flops;
  return f;
}

}  // namespace qlora
