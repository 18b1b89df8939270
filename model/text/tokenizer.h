#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/added_tokens.h"
#include "model/text/bpe.h"
#include "model/text/pre_tokenizer.h"
#include "model/text/token_index.h"

// Tokenizers as tokenizer.json describes them, id for id what the tokenizers library (0.23) gives. Now: BPE
// over ByteLevel, with Digits in front or not, added tokens, and TemplateProcessing; any other normalizer,
// pre-tokenizer, model, post-processor or decoder is refused by name (Category::input). `truncation` and
// `padding` in the file are not applied: rows are cut by the data reader, which says so.
namespace qlora {

// A token and the bytes [begin, end) of the input text it stands for; a token that the post-processor puts
// around the text has an empty range. Tokens that split a character share none of its bytes.
struct TokenSpan {
  int32_t id;
  uint32_t begin, end;
  bool operator==(const TokenSpan&) const = default;
};

// What a GGUF's `tokenizer.ggml.*` keys say. The reader of the container fills it; types: 1 normal, 2
// unknown, 3 control, 4 user defined, 5 unused, 6 byte.
struct GgufTokenizerData {
  std::string path;   // of the file, for errors
  std::string model;  // tokenizer.ggml.model: gpt2 is the one supported
  std::string pre;    // tokenizer.ggml.pre: decides the pre-tokenizer
  std::vector<std::string> tokens;
  std::vector<int32_t> token_type;
  std::vector<std::string> merges;  // "a b"
  std::optional<int64_t> bos_id, eos_id, unk_id, pad_id;
  bool add_bos = false, add_eos = false, add_space_prefix = false;
  std::string chat_template;  // empty: none
};

class Tokenizer {
 public:
  // A Hugging Face folder with tokenizer.json; tokenizer_config.json and special_tokens_map.json are read for
  // the names of the special tokens where they are there. Category::input, naming file and place, for
  // whatever is not understood.
  static std::unique_ptr<Tokenizer> from_folder(const std::string& folder);
  // A tokenizer.json alone, without named special tokens.
  static std::unique_ptr<Tokenizer> from_json(const std::string& path);
  static std::unique_ptr<Tokenizer> from_gguf(const GgufTokenizerData& data);

  // The ids of `text`, which must be UTF-8 (else Category::input with the byte; text typed by a person goes
  // through unicode::lossy first) and below 2 GiB. `add_special`: with what the post-processor adds (BOS,
  // EOS). `parse_special`: special tokens written in the text become their ids; without it they are encoded
  // as text (added tokens that are not special, such as <think>, are always parsed).
  std::vector<int32_t> encode(std::string_view text, bool add_special = true,
                              bool parse_special = true) const;
  std::vector<TokenSpan> encode_spans(std::string_view text, bool add_special = true,
                                      bool parse_special = true) const;
  // As above, but special tokens are not parsed where they touch one of `literal`, ascending ranges of the
  // text: how a rendered chat keeps the template's special tokens apart from those that someone wrote into a
  // message. The ranges do not cut words: text without special tokens has the same ids whatever they are.
  std::vector<TokenSpan> encode_spans(std::string_view text, bool add_special,
                                      std::span<const ByteRange> literal) const;

  // Ids that stand for nothing are skipped; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves out
  // the special tokens.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
  // The bytes of one token, which may be part of a character; empty when the id stands for nothing.
  std::string_view token_bytes(int32_t id) const;

  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }  // the largest id + 1
  std::optional<int32_t> token_to_id(std::string_view token) const;            // as tokenizer.json spells it
  std::string_view id_to_token(int32_t id) const;  // empty when the id stands for nothing
  bool is_special(int32_t id) const;

  // bos_token, eos_token, unk_token, pad_token, … with their text: the variables of chat templates.
  const std::map<std::string, std::string>& named_specials() const { return named_; }
  std::optional<int32_t> named_id(const std::string& name) const;
  std::optional<int32_t> bos_id() const { return named_id("bos_token"); }
  std::optional<int32_t> eos_id() const { return named_id("eos_token"); }
  std::optional<int32_t> pad_id() const { return named_id("pad_token"); }
  std::optional<int32_t> unk_id() const { return named_id("unk_token"); }

  // Writes the tokenizer into a folder, so that transformers loads it there: the original files byte for
  // byte, for a GGUF a tokenizer.json and tokenizer_config.json made from it.
  void save(const std::string& folder) const;

 private:
  friend class TokenizerBuilder;
  Tokenizer() = default;
  void encode_piece(std::string_view text, size_t begin, size_t end, std::vector<TokenSpan>& out) const;

  std::vector<std::string> tokens_;       // by id, as spelled in the vocabulary; empty: no such id
  std::vector<std::string> token_bytes_;  // by id, decoded
  TokenIndex ids_;                        // of tokens_
  Bpe bpe_;
  AddedTokens added_;
  std::vector<PreTokenizerStep> steps_;
  std::vector<int32_t> prefix_, suffix_;  // what the post-processor adds
  std::map<std::string, std::string> named_;
  std::string source_folder_;              // of a Hugging Face folder
  std::optional<GgufTokenizerData> gguf_;  // of a GGUF
};

// Decodes a generation token by token: what comes out ends between characters, the rest waits.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  std::string push(int32_t id);
  std::string finish();  // what waits, its unfinished character as U+FFFD

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string waiting_;
};

}  // namespace qlora
