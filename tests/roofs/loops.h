#pragma once
#include "tests/roofs/roofs.h"

// What a product's inner loop keeps of a roof, once its operands are a product's: a profile of why products
// stay below it.
namespace qlora::testing {

// Where the loop's operands come from, values drawn at random: registers alone; the nearest cache; the panel
// of w from the nearest and x from the second cache, as it is in our products.
enum class Operands : uint8_t { registers, nearest, second };
inline constexpr Operands kOperands[] = {Operands::registers, Operands::nearest, Operands::second};
const char* name_of(Operands o);

// Whether there is such a loop: of tiles and of fp32 vectors.
bool has_loop(Arithmetic a);
// FLOP/s of the loop on `threads` threads at once, the best of ten runs.
double loop_flops(Arithmetic a, Operands operands, int threads);

// Bytes a second that `threads` threads write past the caches, as products write large outputs: the best of
// ten passes over beyond_caches(). 0 on a CPU that our products do not do this on.
double write_bandwidth(int threads);

}  // namespace qlora::testing
