#include "train/later_bytes.h"

#include "memory/process.h"
#include "train/metrics.h"

namespace qlora {
namespace {

constexpr size_t kKiB = 1024;
// Of a file that is read, hashed or copied, before it leaves again (sha256_file, load_adapter): 512 KiB, or
// the largest page in which the system has mapped it, and the 64 KiB mapped around the next touch.
constexpr size_t kFileWindow = (2048 + 64) * kKiB;
// FileWriter's buffer: one file is written at a time.
constexpr size_t kWriter = 128 * kKiB;
// A tensor of a file that is written: its name in the list, the map and the header, shape and place.
constexpr size_t kTensor = 1 * kKiB;
// What a thread's stack has touched: ops keep tiles of a few KiB on it.
constexpr size_t kStack = 32 * kKiB;
// The allocator takes so much at once, on the heap of the program and on that of a thread that allocates.
constexpr size_t kHeapSteps = 2 * 132 * kKiB;

}  // namespace

size_t later_bytes(const LaterUse& use) {
  // A vector that doubles, or one of twice its lines and the report's copy.
  const size_t lines = 3 * static_cast<size_t>(use.log_lines) * sizeof(TrainMetrics);
  return code_to_come() + kFileWindow + kWriter + use.tensors * kTensor +
         static_cast<size_t>(use.threads + 1) * kStack + lines + kHeapSteps;
}

}  // namespace qlora
