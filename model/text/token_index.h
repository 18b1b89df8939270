#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qlora {

// Token text -> id, over strings that stand elsewhere by id: eight bytes a slot, at most half of them taken.
// A tokenizer asks it three times for each merge of its file, which a node for each token made the longest
// part of opening one.
class TokenIndex {
 public:
  // Of the strings that are not empty; they must outlive it, where they are. -1, or the id of a string that
  // stands twice: then find() gives the other, and the rest is not in.
  int32_t build(const std::vector<std::string>& tokens);
  // -1: no such token.
  int32_t find(std::string_view token) const;

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;
  };
  const std::vector<std::string>* tokens_ = nullptr;
  std::vector<Slot> slots_;  // a power of two, or none
};

}  // namespace qlora
