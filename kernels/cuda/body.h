#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace qlora::cuda {

// Which body of a kernel runs, where there is more than one. All have the same bits; they differ in how much
// of what comes next they keep in shared memory.
enum class Body : uint8_t {
  sm80,  // what every card from 8.0 on has room for: 99 KiB a block
  deep,  // more steps ahead, for cards with room for two such blocks: 9.0 and 10.0
};
// Bytes that a block of a body may take.
inline constexpr size_t kDeepSharedBytes = 112 * 1024;

// The one in force on a device: QLORA_CUDA_BODY=sm80 where set (Category::usage when it is another word),
// else by the card's shared memory. Only gemm's own kernel has two (kernels/gemm/gemm_cuda.cu).
Body cuda_body(int device);
Body cuda_body_of(const std::string& name);
Body cuda_body_of(size_t shared_bytes);
// For tests; none: as above.
void set_cuda_body(std::optional<Body> body);

}  // namespace qlora::cuda
