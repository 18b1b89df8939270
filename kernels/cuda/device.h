#pragma once
#include <bit>
#include <cstdint>
#include <source_location>
#include <type_traits>
#include <typeinfo>

#include "kernels/cuda/grid.h"
#include "kernels/cuda/observer.h"
#include "memory/cuda/current.h"
#include "memory/cuda/host.h"
#include "memory/dtype.h"
#include "memory/exec.h"

// What a CUDA kernel is written against: *_cuda.cu files use these names and know of no build. nvcc maps them
// to PTX (device_nvcc.inl); tests map the same source to fibers on the host (device_emulated.h, emulator.h).
//
// A kernel is a trivially copyable struct, its arguments, of 4,096 bytes at most:
//
//   struct Kernel {
//     static constexpr int kThreads = 256;                        // of a block, a multiple of 32
//     static constexpr int kBlocks = 2;                           // that a multiprocessor's registers
//                                                                 // shall hold; may be left out: 1, so
//                                                                 // that a thread has what it wants
//     static constexpr size_t kShared = 1024;                     // bytes of shared memory; may be left
//                                                                 // out: 0
//     static constexpr size_t kMostShared = kDeepSharedBytes;     // where not every card runs it (body.h);
//                                                                 // may be left out
//
//     float* y;
//     QLORA_DEVICE void operator()(SharedMemory shared) const;    // one thread
//   };
//   launch(e, Grid{blocks}, Kernel::kShared, Kernel{y});          // on e's stream; nothing waits
//
// - thread(), lane(), warp(): of the block; of the warp; the warp's place in the block
// - block_x(), block_y(): the block's place in the grid
// - barrier(), warp_barrier(): every thread of the block, or of the warp, comes here; writes are then seen
// - shuffle(v, lane), shuffle_xor(v, mask): another lane's v (4 or 8 bytes); all lanes take part
// - Shared<T>: elements of the block's shared memory: s[i], s.from(i); T of 2 bytes or more
// - SharedMemory::take<T>(n): the next n of them, 16-byte aligned, in a fixed order
// - copy_async16(s, i, from, n): 16 bytes to s[i...], n of them from device memory (0: `from` is not read),
//   zeros after; both 16-byte aligned; not there until waited for
// - commit_copies(), wait_copies<n>(): this thread's copies so far are a group; all groups but its latest n
//   are there
// - load_matrices(r, s, i): ldmatrix.x4: lane l names row l % 8 of matrix l / 8 (8 x 8 elements of 16 bits);
//   r[k] gets matrix k's elements (l / 4, 2 (l % 4)) and the next; load_matrices_transposed: their transpose
// - mma_bf16(c, a, b): m16n8k16: c += a b, fp32 sums of bf16 products (PTX ISA 9.7.14.5 has the layouts)
// - to_float(x), from_float<T>(f), pack_bf16(low, high)
// - fma, sqrt, exp, log, tanh, max: fp32, exp and log in double too; exp, log and tanh are within 3 units in
//   the last place
// - exp2(x): fp32, one instruction: within 2^-22 of the result, 0 where that is subnormal
//
// Nothing is contracted behind the author's back: fma is where it is written.
#if defined(__CUDACC__)
#include "kernels/cuda/device_nvcc.inl"
#else
#include "kernels/cuda/device_emulated.h"
#endif
