#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <typeinfo>
#include <vector>

#include "kernels/cuda/grid.h"
#include "memory/cuda/host.h"

// The machine that tests run CUDA kernels on: a block's threads are fibers of one host thread, blocks follow
// each other. Its state is what device_emulated.h's names act on. What a kernel does wrong ends the launch
// and breaks the emulated device (memory/cuda/emulated.h), so that the next synchronize() throws; the text
// names the kernel's launch, block and thread, and the line where that is known:
//
//   a barrier or a warp's operation that some threads do not come to, or come to at another line
//   shared memory: outside of what was taken, never written, read or written by two threads with no barrier
//   between them, touched before an asynchronous copy to it was waited for, more than a consumer card has
//   asynchronous copies and matrix loads off their alignment; copies nobody waited for
//
// A kernel's result may depend neither on the schedule nor on what shared memory held: tests run each case in
// every variant and compare bits.
namespace qlora::cuda::emulator {

inline constexpr int kVariants = 4;    // forwards or backwards, and one of two poisons
inline std::atomic<int> variant{0};    // of the launches that are put on a stream from here on
inline std::atomic<int64_t> launches;  // that have ended, for tests that want to know that there was one

enum class Access : uint8_t { read, write, copy };  // copy: a write that is not there yet

// Of the thread that runs.
struct Place {
  int thread = 0, block_x = 0, block_y = 0;
};
const Place& place();

void barrier(std::source_location where);
void warp_barrier(std::source_location where);

// One thread's part of a warp's operation: what it gives, and what it gets once all have come.
struct WarpSlot {
  uint32_t words[12];
};
// Gives `mine`; the last to come does `finish` (null: nothing) over all lanes' slots; returns the slots.
WarpSlot* warp_operation(const char* name, const WarpSlot& mine, void (*finish)(WarpSlot*),
                         std::source_location where);
void finish_load_matrices(WarpSlot* lanes);
void finish_load_matrices_transposed(WarpSlot* lanes);
void finish_mma_bf16(WarpSlot* lanes);

// Shared memory.
std::byte* take(size_t& used, size_t bytes);
void outside(int64_t i, int64_t count);
void touch(const void* p, size_t bytes, Access access);
void touch_row(const void* p);  // of 8 x 8 elements of 16 bits: read

void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_copies(int latest);

// What the sources say of a kernel that this program can launch; `type` is mangled, of all its launches.
struct KernelFacts {
  const char* type;
  int threads, blocks;                     // of a block; that a multiprocessor's registers shall hold
  size_t shared_bytes, most_shared_bytes;  // of a block; that the cards it is for have
};
std::vector<KernelFacts>& kernels();
template <class Kernel>
struct Listed {
  static inline const bool done = [] {
    kernels().push_back({typeid(Kernel).name(), Kernel::kThreads, blocks_of<Kernel>(), shared_of<Kernel>(),
                         most_shared_of<Kernel>()});
    return true;
  }();
};

struct LaunchArgs {
  int64_t grid_x, grid_y;
  int threads;
  size_t shared_bytes;
  std::function<void()> thread;  // runs one
  std::source_location where;
};
void launch(Stream& stream, LaunchArgs args);

}  // namespace qlora::cuda::emulator
