#pragma once
#include <cstddef>
#include <cstdint>

namespace qlora::cuda {

inline constexpr int kWarp = 32;
inline constexpr size_t kMostSharedBytes = 99 * 1024;  // that a block may have on consumer cards

struct Grid {
  int64_t x = 1, y = 1;
};

}  // namespace qlora::cuda
