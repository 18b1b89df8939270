#include "model/text/token_index.h"

#include <algorithm>
#include <cstring>

namespace qlora {
namespace {

uint64_t hash_of(std::string_view text) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;
  uint64_t h = text.size() * kOdd;
  for (size_t at = 0; at < text.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + at, std::min<size_t>(8, text.size() - at));
    h = (h ^ word) * kOdd;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace

int32_t TokenIndex::build(const std::vector<std::string>& tokens) {
  tokens_ = &tokens;
  size_t slots = 2;
  while (slots < 2 * tokens.size()) slots *= 2;
  slots_.assign(slots, {});
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    if (token.empty()) continue;
    const uint64_t hash = hash_of(token);
    size_t at = hash & (slots - 1);
    for (; slots_[at].id >= 0; at = (at + 1) & (slots - 1))
      if (tokens[static_cast<size_t>(slots_[at].id)] == token) return static_cast<int32_t>(id);
    slots_[at] = {static_cast<uint32_t>(hash >> 32), static_cast<int32_t>(id)};
  }
  return -1;
}

int32_t TokenIndex::find(std::string_view token) const {
  if (slots_.empty() || token.empty()) return -1;
  const uint64_t hash = hash_of(token);
  for (size_t at = hash & (slots_.size() - 1); slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1))
    if (slots_[at].hash == static_cast<uint32_t>(hash >> 32) &&
        (*tokens_)[static_cast<size_t>(slots_[at].id)] == token)
      return slots_[at].id;
  return -1;
}

}  // namespace qlora
