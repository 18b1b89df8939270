#pragma once
#include <cstddef>
#include <cstdint>

namespace qlora {

// What grows beside a run's arena once its memory is planned, at most; docs/memory.md lists it. Everything
// else that a process holds is there, and measured, when the plan is made.
struct LaterUse {
  int threads = 1;
  size_t tensors = 0;     // of the adapter's file
  int64_t log_lines = 0;  // of metrics.jsonl, which are kept for the report
};
size_t later_bytes(const LaterUse& use);

}  // namespace qlora
