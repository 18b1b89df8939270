#include "model/text/added_tokens.h"

#include <algorithm>

#include "model/text/unicode.h"

namespace qlora {
namespace {

bool touches(std::span<const ByteRange> ranges, size_t begin, size_t end) {
  const auto found = std::lower_bound(ranges.begin(), ranges.end(), begin,
                                      [](const ByteRange& r, size_t at) { return r.end <= at; });
  return found != ranges.end() && found->begin < end;
}

// The start of the character that ends at `at`.
size_t previous(std::string_view text, size_t begin, size_t at) {
  do --at;
  while (at > begin && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

bool word_before(std::string_view text, size_t begin, size_t at) {
  if (at == begin) return false;
  size_t before = previous(text, begin, at);
  return unicode::is_word(unicode::next(text, before));
}

bool word_after(std::string_view text, size_t at, size_t end) {
  return at < end && unicode::is_word(unicode::next(text, at));
}

size_t spaces_before(std::string_view text, size_t begin, size_t at) {
  while (at > begin) {
    const size_t start = previous(text, begin, at);
    size_t cursor = start;
    if (!unicode::is_space(unicode::next(text, cursor))) break;
    at = start;
  }
  return at;
}

size_t spaces_after(std::string_view text, size_t at, size_t end) {
  while (at < end) {
    size_t cursor = at;
    if (!unicode::is_space(unicode::next(text, cursor))) break;
    at = cursor;
  }
  return at;
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  const int32_t index = static_cast<int32_t>(tokens_.size());
  Trie& trie = tries_[token.normalized];
  int32_t node = 0;
  for (const char c : token.content) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (node == 0) trie.starts[byte] = true;
    int32_t child = -1;
    for (const auto& [b, n] : trie.nodes[node].next)
      if (b == byte) child = n;
    if (child < 0) {
      child = static_cast<int32_t>(trie.nodes.size());
      trie.nodes.emplace_back();
      trie.nodes[node].next.push_back({byte, child});
    }
    node = child;
  }
  trie.nodes[node].token = index;
  by_id_[token.id] = tokens_.size();
  tokens_.push_back(std::move(token));
}

bool AddedTokens::is_special(int32_t id) const {
  const auto found = by_id_.find(id);
  return found != by_id_.end() && tokens_[found->second].special;
}

const AddedToken* AddedTokens::longest(const Trie& trie, std::string_view text, size_t at,
                                       std::span<const ByteRange> literal) const {
  const AddedToken* best = nullptr;
  int32_t node = 0;
  for (size_t i = at; i < text.size() && node >= 0; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    int32_t child = -1;
    for (const auto& [b, n] : trie.nodes[node].next)
      if (b == byte) child = n;
    node = child;
    if (node < 0 || trie.nodes[node].token < 0) continue;
    const AddedToken& token = tokens_[trie.nodes[node].token];
    if (!token.special || !touches(literal, at, i + 1)) best = &token;
  }
  return best;
}

void AddedTokens::split(std::string_view whole, size_t begin, size_t end, bool normalized,
                        std::span<const ByteRange> literal, std::vector<Piece>& out) const {
  const Trie& trie = tries_[normalized];
  const std::string_view text = whole.substr(0, end);
  size_t done = begin;
  for (size_t at = trie.empty() ? end : begin; at < end;) {
    const AddedToken* token =
        trie.starts[static_cast<uint8_t>(text[at])] ? longest(trie, text, at, literal) : nullptr;
    if (!token) {
      ++at;
      continue;
    }
    size_t from = at, to = at + token->content.size();
    at = to;  // the search goes on behind the match, whatever becomes of it
    if (token->single_word && (word_before(text, begin, from) || word_after(text, to, end))) continue;
    // What a token before this one has taken stays with it.
    if (token->lstrip) from = std::max(spaces_before(text, begin, from), done);
    if (token->rstrip) to = spaces_after(text, to, end);
    if (done < from) out.push_back({done, from, -1});
    out.push_back({from, to, token->id});
    done = to;
  }
  if (done < end) out.push_back({done, end, -1});
}

}  // namespace qlora
