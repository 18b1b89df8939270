#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/text/chat.h"
#include "model/text/tokenizer.h"

namespace qlora {

LossOn parse_loss_on(std::string_view name);  // as --loss-on has them; Category::usage

// What the readers ask of tokenizer and chat template. All functions are thread-safe; errors are Error of
// Category::input, without file and line, which the caller puts in front.
class RowEncoder {
 public:
  virtual ~RowEncoder() = default;
  // Text as the tokenizer has it: its own BOS or EOS around, special tokens that are written in the text
  // parsed (a `text` row is often a rendered conversation).
  virtual std::vector<TokenSpan> encode(std::string_view text) const = 0;
  // A conversation through the chat template, with the tokens that loss_on() says are learned.
  virtual EncodedChat encode_chat(const Conversation& chat) const = 0;
  // The same, ending in what makes the assistant answer (the generation prompt).
  virtual std::vector<int32_t> encode_question(const Conversation& chat) const = 0;
  virtual LossOn loss_on() const = 0;
  virtual std::optional<int32_t> eos() const = 0;  // what ends a document
  virtual int64_t vocab() const = 0;               // ids are below it
};

// A model's own tokenizer and chat template.
class ModelRowEncoder : public RowEncoder {
 public:
  // The tokenizer must outlive the encoder. `templates` may be empty: conversations are then refused
  // (Category::input). `vocab`: rows of the model's embedding table.
  ModelRowEncoder(const Tokenizer& tokenizer, ChatTemplates templates, ChatOptions options, int64_t vocab);
  std::vector<TokenSpan> encode(std::string_view text) const override;
  EncodedChat encode_chat(const Conversation& chat) const override;
  std::vector<int32_t> encode_question(const Conversation& chat) const override;
  LossOn loss_on() const override { return loss_on_; }
  std::optional<int32_t> eos() const override { return tokenizer_.eos_id(); }
  int64_t vocab() const override { return vocab_; }
  // The encoder of conversations; Category::input when there is no template.
  const ChatEncoder& chat() const;

 private:
  const Tokenizer& tokenizer_;
  std::optional<ChatEncoder> chat_;
  LossOn loss_on_;
  int64_t vocab_;
};

}  // namespace qlora
