#include <bit>
#include <cstring>

#include "kernels/cuda/emulator.h"
#include "kernels/cuda/grid.h"

// What a warp's operations make of what its lanes gave (device_emulated.h).
namespace qlora::cuda::emulator {

// words[4...] are the row that the lane named, words[0...3] what it gets.
void finish_load_matrices(WarpSlot* lanes) {
  for (int m = 0; m < 4; ++m)
    for (int l = 0; l < kWarp; ++l) lanes[l].words[m] = lanes[m * 8 + l / 4].words[4 + l % 4];
}
void finish_load_matrices_transposed(WarpSlot* lanes) {
  for (int m = 0; m < 4; ++m)
    for (int l = 0; l < kWarp; ++l) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i)
        std::memcpy(&pair[i],
                    reinterpret_cast<const char*>(lanes[m * 8 + l % 4 * 2 + i].words + 4) + l / 4 * 2, 2);
      std::memcpy(&lanes[l].words[m], pair, 4);
    }
}

void finish_mma_bf16(WarpSlot* lanes) {
  const auto low = [](uint32_t w) { return std::bit_cast<float>(w << 16); };
  const auto high = [](uint32_t w) { return std::bit_cast<float>(w & 0xffff0000u); };
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const int g = l / 4, t = l % 4 * 2;
    std::memcpy(&c[g][t], lanes[l].words, 8);
    std::memcpy(&c[g + 8][t], lanes[l].words + 2, 8);
    for (int i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][t + i / 2 * 8] = low(lanes[l].words[4 + i]);
      a[g + i % 2 * 8][t + i / 2 * 8 + 1] = high(lanes[l].words[4 + i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[t + i * 8][g] = low(lanes[l].words[8 + i]);
      b[t + i * 8 + 1][g] = high(lanes[l].words[8 + i]);
    }
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < kWarp; ++l) {
    std::memcpy(lanes[l].words, &c[l / 4][l % 4 * 2], 8);
    std::memcpy(lanes[l].words + 2, &c[l / 4 + 8][l % 4 * 2], 8);
  }
}

}  // namespace qlora::cuda::emulator
