#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/tokenizer.h"

namespace qlora {

// Puts a Tokenizer together from parts that come from a file, checking each. Not for callers of the library.
class TokenizerBuilder {
 public:
  // `where` opens every error: the file.
  explicit TokenizerBuilder(std::string where) : where_(std::move(where)), made_(new Tokenizer) {}

  // The parts, in this order.
  void reserve(size_t tokens);
  void token(std::string_view text, int64_t id);
  void added(AddedToken token);
  void seal();  // after the last token: the lookups are made
  void reserve_merges(size_t count) { made_->bpe_.reserve_merges(count); }
  void merge(std::string_view left, std::string_view right);
  void unknown(std::string_view token, bool fuse);
  void ignore_merges();
  void step(PreTokenizerStep step) { made_->steps_.push_back(step); }
  void around(std::vector<int32_t> prefix, std::vector<int32_t> suffix);
  void named(const std::string& name, std::string_view token) { made_->named_[name] = token; }
  void from_folder(const std::string& folder) { made_->source_folder_ = folder; }
  void from_gguf(const GgufTokenizerData& data) { made_->gguf_ = data; }
  std::unique_ptr<Tokenizer> finish();

  const std::string& where() const { return where_; }
  const Tokenizer& so_far() const { return *made_; }
  // The id of a token that must exist; `what` says in which place of the file it is asked for.
  int32_t must_have(std::string_view token, std::string_view what) const;

 private:
  std::string where_;
  std::unique_ptr<Tokenizer> made_;
  int64_t limit_ = 0;
  int32_t merges_ = 0;
  std::string merged_;
  std::vector<AddedToken> added_;
};

// GPT-2's spelling of bytes as characters: printable ones as they are, the others from U+0100 on.
std::string bytes_to_spelling(std::string_view bytes);
// The bytes that a token spells; false when some character spells none (then the token stands for itself).
bool spelling_to_bytes(std::string_view spelling, std::string& bytes);

}  // namespace qlora
