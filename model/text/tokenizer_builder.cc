#include "model/text/tokenizer_builder.h"

#include <array>

#include "memory/error.h"
#include "model/text/unicode.h"

namespace qlora {
namespace {

const std::array<char32_t, 256>& spelling_table() {
  static const auto table = [] {
    std::array<char32_t, 256> t{};
    char32_t shifted = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      t[b] = printable ? b : shifted++;
    }
    return t;
  }();
  return table;
}

// Room for gaps between ids (tokenizers with reserved ids have some) but not for an id that exhausts memory.
int64_t id_limit(size_t tokens) { return static_cast<int64_t>(tokens) * 4 + 65536; }

}  // namespace

std::string bytes_to_spelling(std::string_view bytes) {
  std::string out;
  for (const char b : bytes) unicode::append(out, spelling_table()[static_cast<uint8_t>(b)]);
  return out;
}

bool spelling_to_bytes(std::string_view spelling, std::string& bytes) {
  static const auto inverse = [] {
    std::array<int16_t, 0x144> t;
    t.fill(-1);
    for (int16_t b = 0; b < 256; ++b) t[spelling_table()[b]] = b;
    return t;
  }();
  bytes.clear();
  for (size_t at = 0; at < spelling.size();) {
    const char32_t c = unicode::next(spelling, at);
    if (c >= inverse.size() || inverse[c] < 0) return false;
    bytes += static_cast<char>(inverse[c]);
  }
  return true;
}

void TokenizerBuilder::reserve(size_t tokens) {
  limit_ = id_limit(tokens);
  made_->tokens_.reserve(tokens);
}

void TokenizerBuilder::token(std::string_view text, int64_t id) {
  if (id < 0 || id >= limit_)
    fail(Category::input, where_, ": token \"", text, "\" has id ", id, ", outside of the vocabulary (",
         limit_, " at most); the file is damaged");
  if (text.empty()) return;  // reachable by nothing
  auto& tokens = made_->tokens_;
  if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
  std::string& place = tokens[static_cast<size_t>(id)];
  if (!place.empty() && place != text)
    fail(Category::input, where_, ": id ", id, " belongs to \"", place, "\" and to \"", text,
         "\"; the file is damaged");
  place = text;
}

void TokenizerBuilder::added(AddedToken added) {
  if (added.content.empty()) return;
  token(added.content, added.id);
  added_.push_back(std::move(added));
}

void TokenizerBuilder::seal() {
  auto& t = *made_;
  if (const int32_t id = t.ids_.build(t.tokens_); id >= 0) {
    const std::string& text = t.tokens_[static_cast<size_t>(id)];
    fail(Category::input, where_, ": token \"", text, "\" has two ids, ", t.ids_.find(text), " and ", id,
         "; the file is damaged");
  }
  t.token_bytes_.resize(t.tokens_.size());
  std::string bytes;
  for (size_t id = 0; id < t.tokens_.size(); ++id) {
    const std::string& text = t.tokens_[id];
    if (text.empty()) continue;
    const bool spelled = spelling_to_bytes(text, bytes);
    t.token_bytes_[id] = spelled ? bytes : text;
    if (spelled && bytes.size() == 1)
      t.bpe_.set_byte(static_cast<uint8_t>(bytes[0]), static_cast<int32_t>(id));
  }
  for (AddedToken& a : added_) t.added_.add(std::move(a));
  added_.clear();
}

int32_t TokenizerBuilder::must_have(std::string_view token, std::string_view what) const {
  const int32_t id = made_->ids_.find(token);
  if (id < 0)
    fail(Category::input, where_, ": ", what, ": \"", token,
         "\" is not in the vocabulary; the file is damaged");
  return id;
}

void TokenizerBuilder::merge(std::string_view left, std::string_view right) {
  merged_.assign(left).append(right);
  const auto id_of = [&](std::string_view token) {
    const int32_t id = made_->ids_.find(token);
    return id >= 0 ? id : must_have(token, cat("merge ", merges_));
  };
  const int32_t l = id_of(left), r = id_of(right), both = id_of(merged_);
  made_->bpe_.add_merge(l, r, both, merges_++);
}

void TokenizerBuilder::unknown(std::string_view token, bool fuse) {
  made_->bpe_.set_unknown(must_have(token, "unk_token"), fuse);
}

void TokenizerBuilder::ignore_merges() {
  std::unordered_map<std::string_view, int32_t> words;
  words.reserve(made_->tokens_.size());
  std::string bytes;
  for (size_t id = 0; id < made_->tokens_.size(); ++id)
    if (!made_->tokens_[id].empty() && spelling_to_bytes(made_->tokens_[id], bytes))
      words.emplace(made_->token_bytes_[id], static_cast<int32_t>(id));
  made_->bpe_.set_whole_words(std::move(words));
}

void TokenizerBuilder::around(std::vector<int32_t> prefix, std::vector<int32_t> suffix) {
  made_->prefix_ = std::move(prefix);
  made_->suffix_ = std::move(suffix);
}

std::unique_ptr<Tokenizer> TokenizerBuilder::finish() {
  made_->bpe_.seal();
  return std::move(made_);
}

}  // namespace qlora
