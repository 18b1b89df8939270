#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "memory/sha256_blocks.h"

namespace qlora {

// SHA-256 (FIPS 180-4), fed piece by piece; by the CPU's own instructions where it has them.
class Sha256 {
 public:
  enum class Body { fastest, portable };
  explicit Sha256(Body body = Body::fastest);
  void update(const void* data, size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  // 64 lower-case hex digits of everything fed. Once.
  std::string hex();

 private:
  Sha256Blocks blocks_;
  std::array<uint32_t, 8> state_ = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                    0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  std::array<uint8_t, 64> pending_{};
  uint64_t bytes_ = 0;
};

std::string sha256_hex(std::string_view text);
// Of a whole file, streamed. Category::input when it is absent.
std::string sha256_file(const std::string& path);

}  // namespace qlora
