#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace qlora {

// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin, end;
  bool operator==(const ByteRange&) const = default;
};

// An entry of tokenizer.json's `added_tokens`.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // only where no \w touches it
  bool lstrip = false;       // takes the spaces before it along
  bool rstrip = false;       // and those after it
  bool normalized = false;   // looked for in normalized text
};

// Cuts added tokens out of a text before anything else sees it, leftmost-longest.
class AddedTokens {
 public:
  struct Piece {
    size_t begin, end;
    int32_t id;  // -1: text between tokens
  };

  void add(AddedToken token);
  const std::vector<AddedToken>& all() const { return tokens_; }
  bool is_special(int32_t id) const;

  // The pieces of text[begin, end), in order, of the tokens with the given `normalized` flag. Special tokens
  // that touch a range of `literal` (ascending) are passed over.
  void split(std::string_view text, size_t begin, size_t end, bool normalized,
             std::span<const ByteRange> literal, std::vector<Piece>& out) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> next;
    int32_t token = -1;  // index into tokens_
  };
  struct Trie {
    std::vector<Node> nodes{Node{}};
    bool starts[256] = {};
    bool empty() const { return nodes.size() == 1; }
  };
  const AddedToken* longest(const Trie& trie, std::string_view text, size_t at,
                            std::span<const ByteRange> literal) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  Trie tries_[2];  // by `normalized`
};

}  // namespace qlora
