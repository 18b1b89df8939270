#pragma once
#include <cstddef>
#include <cstdint>

namespace qlora::cuda {

inline constexpr int kWarp = 32;
inline constexpr size_t kMostSharedBytes = 99 * 1024;  // that a block may have on consumer cards

struct Grid {
  int64_t x = 1, y = 1;
};

// What a kernel's type says of its launches (device.h).
template <class Kernel>
constexpr int blocks_of() {
  if constexpr (requires { Kernel::kBlocks; })
    return Kernel::kBlocks;
  else
    return 1;
}
// Of shared memory, that a block may have on the cards that the kernel is for.
template <class Kernel>
constexpr size_t most_shared_of() {
  if constexpr (requires { Kernel::kMostShared; })
    return Kernel::kMostShared;
  else
    return kMostSharedBytes;
}
template <class Kernel>
constexpr size_t shared_of() {
  if constexpr (requires { Kernel::kShared; })
    return Kernel::kShared;
  else
    return 0;
}

}  // namespace qlora::cuda
