#include "train/data/row_encoder.h"

#include "memory/error.h"

namespace qlora {

LossOn parse_loss_on(std::string_view name) {
  if (name == "assistant") return LossOn::assistant;
  if (name == "last") return LossOn::last;
  if (name == "all") return LossOn::all;
  fail(Category::usage, "--loss-on ", name, ": unknown; choose assistant, last or all");
}

ModelRowEncoder::ModelRowEncoder(const Tokenizer& tokenizer, ChatTemplates templates, ChatOptions options,
                                 int64_t vocab)
    : tokenizer_(tokenizer), loss_on_(options.loss_on), vocab_(vocab) {
  if (!templates.empty()) chat_.emplace(tokenizer, std::move(templates), std::move(options));
}

const ChatEncoder& ModelRowEncoder::chat() const {
  if (!chat_)
    fail(Category::input,
         "the model has no chat template; give --chat-template, or data as prompt-completion or text");
  return *chat_;
}

std::vector<TokenSpan> ModelRowEncoder::encode(std::string_view text) const {
  return tokenizer_.encode_spans(text);
}

EncodedChat ModelRowEncoder::encode_chat(const Conversation& c) const { return chat().encode(c); }

std::vector<int32_t> ModelRowEncoder::encode_question(const Conversation& c) const {
  return chat().encode_prompt(c);
}

}  // namespace qlora
