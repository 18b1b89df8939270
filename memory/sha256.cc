#include "memory/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "memory/file.h"

namespace qlora {
namespace {

uint32_t big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

void one_block(std::array<uint32_t, 8>& state, const uint8_t* p) {
  std::array<uint32_t, 64> w;
  for (size_t i = 0; i < 16; ++i) w[i] = big_endian(p + 4 * i);
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
    const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Round[i] + w[i];
    const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
    const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> add = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state[i] += add[i];
}

}  // namespace

void sha256_blocks_portable(std::array<uint32_t, 8>& state, const uint8_t* data, size_t count) {
  for (; count > 0; --count, data += 64) one_block(state, data);
}

Sha256::Sha256(Body body) : blocks_(body == Body::fastest ? sha256_blocks_of_cpu() : nullptr) {
  if (blocks_ == nullptr) blocks_ = sha256_blocks_portable;
}

void Sha256::update(const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  const size_t held = bytes_ % 64;
  bytes_ += bytes;
  if (held != 0) {
    const size_t take = std::min(bytes, 64 - held);
    if (take != 0) std::memcpy(pending_.data() + held, p, take);
    p += take;
    bytes -= take;
    if (held + take < 64) return;
    blocks_(state_, pending_.data(), 1);
  }
  blocks_(state_, p, bytes / 64);
  if (bytes % 64 != 0) std::memcpy(pending_.data(), p + bytes / 64 * 64, bytes % 64);
}

std::string Sha256::hex() {
  const uint64_t bits = bytes_ * 8;
  static constexpr std::array<uint8_t, 64> kPadding = {0x80};
  const size_t held = bytes_ % 64;
  update(kPadding.data(), held < 56 ? 56 - held : 120 - held);
  std::array<uint8_t, 8> length;
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length.data(), length.size());
  std::string out;
  for (const uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[(word >> shift) & 15];
  return out;
}

std::string sha256_hex(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return hash.hex();
}

std::string sha256_file(const std::string& path) {
  constexpr size_t kPiece = size_t{512} << 10;  // resident at once
  const MappedFile file(path);
  Sha256 hash;
  for (size_t at = 0; at < file.size(); at += kPiece) {
    const size_t bytes = std::min(kPiece, file.size() - at);
    hash.update(file.data() + at, bytes);
    file.forget(at, bytes);
  }
  return hash.hex();
}

}  // namespace qlora
