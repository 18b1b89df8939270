#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/isa.h"
#include "memory/dtype.h"

// What this machine can do at most, measured: multiply-adds from registers alone, and bytes read from memory.
// A benchmark's figure is a share of the one or the other (Williams et al. 2009, "Roofline").
namespace qlora::testing {

// Instructions that multiply and add: TDPBF16PS, VDPBF16PS, VFMADD of 16 and of 8 lanes, and what the
// compiler makes of plain code.
enum class Arithmetic : uint8_t { tiles, dots, fma512, fma256, scalar };
inline constexpr Arithmetic kArithmetics[] = {Arithmetic::tiles, Arithmetic::dots, Arithmetic::fma512,
                                              Arithmetic::fma256, Arithmetic::scalar};
const char* name_of(Arithmetic a);
// Whether this CPU has it, whatever our products use.
bool supported(Arithmetic a);
// What products of such operands run on under the ISA in force.
Arithmetic arithmetic_of(Isa isa, DType operands);

// Seconds: of this thread alone where it works alone, so that other programs cost nothing; else by the clock
// on the wall.
double now(int threads);

// FLOP/s of independent chains of that instruction on `threads` threads at once, the best of ten runs of some
// milliseconds.
double flops_per_second(Arithmetic a, int threads);
// The arithmetic with the most FLOP/s here: found once.
Arithmetic fastest_arithmetic();
// Its FLOP/s on `threads` threads, measured now: a machine's clock is not the same all day.
double peak_flops(int threads);

// Bytes that lie in no cache: twice the last one's, between 256 MiB and 1 GiB and at most a quarter of the
// memory that is free.
size_t beyond_caches();
// Bytes a second that `threads` threads read from memory, the best of ten passes over beyond_caches():
// measured once for each number of threads.
double read_bandwidth(int threads);
// Seconds that the same threads need to read half of `bytes` and write as many: the roof of an op that moves
// what caches may hold. The best of twenty copies and as many updates in place.
double move_seconds(double bytes, int threads);

}  // namespace qlora::testing
