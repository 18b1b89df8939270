#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace qlora {

struct TokenSpan;

// Byte-pair encoding over bytes: a word starts as its bytes' tokens, and the pair of neighbours whose merge
// has the lowest rank (the leftmost of equals) is joined until no pair has one. O(n log n) in the length of
// the word. Each thread remembers the short words that it encoded last: text has few different ones.
class Bpe {
 public:
  // Calls with rank 0, 1, … in order; a pair that comes again takes the later rank, as in the reference.
  void add_merge(int32_t left, int32_t right, int32_t merged, int32_t rank);
  void reserve_merges(size_t count);
  void set_byte(uint8_t byte, int32_t id) { bytes_[byte] = id; }
  // Bytes without a token become `id` (neighbours together if `fuse`); without this they are left out.
  void set_unknown(int32_t id, bool fuse) { unknown_ = id, fuse_unknown_ = fuse; }
  // `ignore_merges`: a word that is a token as a whole is that token. The keys must outlive this.
  void set_whole_words(std::unordered_map<std::string_view, int32_t> words) { words_ = std::move(words); }

  // After the last of the above: from here on words are remembered.
  void seal();

  // Appends the tokens of `word`. Its byte i stands at begin + i - lead of the text, i < lead nowhere.
  void encode(std::string_view word, size_t begin, size_t lead, std::vector<TokenSpan>& out) const;

 private:
  struct Merge {
    uint64_t pair = kNone;
    int32_t rank = 0, id = 0;
  };
  struct Symbol {
    int32_t id;
    uint32_t begin, end;
  };
  static constexpr uint64_t kNone = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot(uint64_t pair) const;
  const Merge* find(int32_t left, int32_t right) const;
  void grow(size_t slots);
  void symbols_of(std::string_view word, std::vector<Symbol>& out) const;
  void tokens_of(std::string_view word, std::vector<Symbol>& out) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols) const;

  std::array<int32_t, 256> bytes_ = [] {
    std::array<int32_t, 256> none;
    none.fill(-1);
    return none;
  }();
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false;
  std::unordered_map<std::string_view, int32_t> words_;
  std::vector<Merge> table_;  // open addressing, a power of two, at most half full
  size_t used_ = 0;
  uint64_t sealed_ = 0;  // a number that no other has; 0: not sealed
};

}  // namespace qlora
