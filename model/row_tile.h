#pragma once
#include <cstdint>
#include <string>

#include "memory/exec.h"

namespace qlora {

// Rows that projections and the MLP go through at a time: part of the arithmetic (gradients add up tile by
// tile, and a card's products hang on their rows), so by the kind of machine alone, never by memory, batch or
// budget.
inline constexpr int64_t kRowTile = 512;
// A card of the data center decodes each weight once for more rows, and has room for them: by data sheets (1
// byte moved for 160 flops) decoding costs some 40 % of the product at 512 and some 5 % at 4096. Not
// measured.
inline constexpr int64_t kWideRowTile = 4096;

// QLORA_ROW_TILE where set, on a CUDA device (Category::usage when it is no multiple of 512 up to 65536);
// else kWideRowTile on cards of compute capability 9.x and 10.x, kRowTile on other cards, on one that is not
// here, and on the CPU.
int64_t row_tile(const Device& device);
int64_t row_tile_of(const std::string& rows);

}  // namespace qlora
