#include "model/text/tokenizer.h"

#include <limits>

#include "memory/error.h"
#include "model/text/unicode.h"

namespace qlora {

void Tokenizer::encode_piece(std::string_view text, size_t begin, size_t end,
                             std::vector<TokenSpan>& out) const {
  pre_tokenize(steps_, text, begin, end,
               [&](const Word& word) { bpe_.encode(word.bytes, word.begin, word.lead, out); });
}

std::vector<TokenSpan> Tokenizer::encode_spans(std::string_view text, bool add_special,
                                               std::span<const ByteRange> literal) const {
  if (text.size() > std::numeric_limits<int32_t>::max())
    fail(Category::input, "a text of ", text.size(),
         " bytes is too long for the tokenizer; split it below 2 GiB");
  if (const size_t bad = unicode::first_invalid(text); bad != std::string_view::npos)
    fail(Category::input, "byte ", bad, " of the text is not valid UTF-8; convert it to UTF-8");
  std::vector<TokenSpan> out;
  out.reserve(text.size() / 4 + 8);  // about what text needs
  const auto size = static_cast<uint32_t>(text.size());
  const auto put = [&](int32_t id, size_t begin, size_t end) {
    out.push_back({id, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
  };
  if (add_special)
    for (const int32_t id : prefix_) put(id, 0, 0);
  std::vector<AddedTokens::Piece> pieces, inner;
  added_.split(text, 0, text.size(), false, literal, pieces);
  for (const auto& piece : pieces) {
    if (piece.id >= 0) {
      put(piece.id, piece.begin, piece.end);
      continue;
    }
    inner.clear();
    added_.split(text, piece.begin, piece.end, true, literal, inner);
    for (const auto& part : inner) {
      if (part.id >= 0)
        put(part.id, part.begin, part.end);
      else
        encode_piece(text, part.begin, part.end, out);
    }
  }
  if (add_special)
    for (const int32_t id : suffix_) put(id, size, size);
  return out;
}

std::vector<TokenSpan> Tokenizer::encode_spans(std::string_view text, bool add_special,
                                               bool parse_special) const {
  const ByteRange all[] = {{0, text.size()}};
  return encode_spans(text, add_special, std::span<const ByteRange>(all, parse_special ? 0 : 1));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  const auto spans = encode_spans(text, add_special, parse_special);
  std::vector<int32_t> ids;
  ids.reserve(spans.size());
  for (const TokenSpan& s : spans) ids.push_back(s.id);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!(skip_special && is_special(id))) bytes += token_bytes(id);
  return unicode::lossy(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return token_bytes_[static_cast<size_t>(id)];
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return tokens_[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const int32_t id = ids_.find(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_special(int32_t id) const { return added_.is_special(id); }

std::optional<int32_t> Tokenizer::named_id(const std::string& name) const {
  const auto found = named_.find(name);
  if (found == named_.end()) return std::nullopt;
  return token_to_id(found->second);
}

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  waiting_ += tokenizer_.token_bytes(id);
  const size_t ready = unicode::complete_prefix(waiting_);
  std::string out = unicode::lossy(std::string_view(waiting_).substr(0, ready));
  waiting_.erase(0, ready);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = unicode::lossy(waiting_);
  waiting_.clear();
  return out;
}

}  // namespace qlora
