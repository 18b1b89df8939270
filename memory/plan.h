#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "memory/trace.h"

namespace qlora {

// A line of a memory plan: bytes that are there at the run's peak, and what for.
struct PlanRegion {
  std::string name;
  Place where;
  size_t bytes;
  std::string why;
};

// What is live in a trace at the moment when most is, by region, name and block, in order of first birth.
struct LiveBytes {
  Region region;
  const char* name;
  int block;
  size_t bytes;
};
std::vector<LiveBytes> live_at_peak(const Trace& trace, Place where = Place::device);
std::vector<LiveBytes> live_at(const Trace& trace, int64_t time, Place where = Place::device);

// What ops cost on this machine: each kind of product at its rate, and every byte at the bandwidth.
struct OpRates {
  double product = 1e11, attention = 3e10;  // flops a second
  double bandwidth = 1e10;                  // bytes a second
  double transfer = 0;  // the same, to where pages live; 0: not known, so nothing is paged that can stay
  double seconds(const OpCost& op) const;
};

// Something that may be given up for memory: it then costs time, and frees bytes at the peak (none where its
// bytes are needed at the peak anyway).
struct Decision {
  double seconds;
  size_t bytes;
};

// Which decisions to take so that fits(taken) holds, at the least time found: those that cost least per byte
// first, as few as fit (bisection), and then each undone, dearest first, where it still fits. Empty when not
// even all of them fit. `fits` is asked about decisions.size() times at most, beside the bisection.
std::vector<bool> choose(std::span<const Decision> decisions,
                         const std::function<bool(const std::vector<bool>& taken)>& fits);

}  // namespace qlora
