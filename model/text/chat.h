#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"

namespace qlora {

enum class LossOn {
  assistant,  // every answer and its end-of-turn token, not what the template puts after it
  last,       // the same of the last answer alone
  all         // everything but the first token
};

struct EncodedChat {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss;  // 1 where the token is learned, as many as ids
};

struct ChatOptions {
  LossOn loss_on = LossOn::assistant;
  // Special tokens written in messages, tools or documents are encoded as text; only those of the template
  // are special. Off: the whole text is parsed, as transformers does.
  bool content_as_text = true;
  // Leaves out the tokens behind the last one that is learned (the newline after ChatML's last turn): no loss
  // or gradient depends on them. Rows where nothing is learned stay whole.
  bool drop_tail = false;
  std::optional<std::tm> now;  // strftime_now
};

// Conversations to tokens. The rendered text is tokenized without what the tokenizer's post-processor adds:
// the template brings BOS where the model wants one, so it is there exactly once.
//
// Which tokens are learned is decided by token spans, never by searching text. A template with {% generation
// %} says it: a token counts when it overlaps a block. For others an answer begins where the messages before
// it, rendered with the generation prompt, end, and goes through the last byte of its content and the special
// tokens that the template puts directly behind; where the template rewrites what came before (thinking left
// out of earlier turns) the places of the message's own content decide.
class ChatEncoder {
 public:
  // The tokenizer must outlive the encoder.
  ChatEncoder(const Tokenizer& tokenizer, ChatTemplates templates, ChatOptions options = {});

  // Category::input where the template raises, or where it does not show which part is the answer.
  EncodedChat encode(const Conversation& chat) const;
  // What generation starts from: the messages and the generation prompt.
  std::vector<int32_t> encode_prompt(const Conversation& chat) const;
  // The text and what encode() would learn of it, as ascending bytes.
  Rendered render(const Conversation& chat, bool add_generation_prompt) const;
  std::vector<ByteRange> learned(const Conversation& chat) const;
  // The name of the template that the conversation is rendered with.
  const std::string& template_name(const Conversation& chat) const;
  // The special token that the template puts behind an answer, where it does so.
  std::optional<int32_t> end_of_turn() const;

 private:
  std::vector<TokenSpan> tokens(const Rendered& text) const;
  std::vector<ByteRange> learned(const Conversation& chat, const Rendered& text,
                                 const std::vector<TokenSpan>& tokens) const;

  const Tokenizer& tokenizer_;
  ChatTemplates templates_;
  ChatOptions options_;
};

}  // namespace qlora
