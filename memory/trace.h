#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace qlora {

// What a span of memory is for: the rows of a memory plan.
enum class Region : uint8_t {
  base,
  adapter,
  gradients,
  moments,
  activations,
  workspace,
  logits,
  staging,  // slots of pagers, rows on their way from a file
  data
};
const char* name_of(Region r);

// Where bytes lie: with the device that computes, in host memory that a CUDA device copies from and to (the
// same as `device` on a CPU), or in a mapped file, whose pages count as resident once touched.
enum class Place : uint8_t { device, host, file };
const char* name_of(Place p);

// One allocation: when it is made and freed, counted in events of its trace, and where it lies in the arena.
struct Span {
  const char* name;  // a literal
  Region region;
  int block;  // of the decoder it belongs to; -1: none
  size_t bytes;
  int64_t born, died;
  size_t offset = 0;
  Place where = Place::device;  // or host
  bool live_at(int64_t time) const { return born <= time && time < died; }
  bool meets(const Span& o) const { return born < o.died && o.born < died; }
};

// An operation, as often as its loop goes round.
struct OpCost {
  const char* name;
  double flops, bytes_read, bytes_written;
  int block;
};

// What a use of a page needs: its bytes (read), a place for new ones (write), or both (update).
enum class Access : uint8_t { read, write, update };

// One use of a page, from acquire to release (memory/pager.h), counted in events of its trace.
struct PageUse {
  uint32_t page;
  Access access;
  size_t bytes;
  int64_t acquired, released;
};

// What one phase (a microbatch, an optimizer step, an evaluation batch) allocates and computes, in order, as
// rehearsed once for the largest batch. The order of allocations hangs on the configuration alone, never on
// data: a real request may be smaller than its span, never larger, and comes in the same place.
struct Trace {
  static constexpr int64_t kForever = INT64_MAX;
  static constexpr size_t kAlign = 64;

  explicit Trace(std::string name) : name(std::move(name)) {}
  std::string name;
  std::vector<Span> spans;
  std::vector<OpCost> ops;
  std::map<std::string, std::vector<PageUse>> page_uses;  // by the pager's name, in order
  int64_t now = 0;
  size_t base = 0;       // where in the arena the phase's memory begins
  size_t bytes = 0;      // its extent, by lay_out
  size_t host_base = 0;  // the same of the host's arena
  size_t host_bytes = 0;
  bool laid_out = false;

  // Gives every span an offset: largest first, each at the lowest place that is free over its whole life.
  void lay_out();
  // When the most bytes are live, and how many: the lower bound of `bytes`.
  std::pair<int64_t, size_t> peak(Place where = Place::device) const;
  size_t peak_live_bytes(Place where = Place::device) const { return peak(where).second; }
  double flops() const;
};

}  // namespace qlora
