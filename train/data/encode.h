#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/io/json.h"
#include "model/text/tokenizer.h"
#include "train/data/rows.h"

namespace qlora {

// A rendered conversation, tokenized.
struct EncodedChat {
  std::vector<int32_t> ids;
  // [ids] the index in `messages` of the assistant message that a token belongs to, its end-of-turn token
  // included; -1 for what the template or another role wrote.
  std::vector<int32_t> turn;
};

// What the readers ask of tokenizer and chat template. All functions are thread-safe; errors are Error of
// Category::input, without file and line, which the caller puts in front.
class ChatEncoder {
 public:
  virtual ~ChatEncoder() = default;
  // Text as the tokenizer has it: its own BOS or EOS around, special tokens that are written in the text
  // parsed (a `text` row is often a rendered conversation). Byte ranges as in TokenSpan.
  virtual std::vector<TokenSpan> encode(std::string_view text) const = 0;
  // `conversation` is {"messages", "tools"?, "documents"?, "chat_template_kwargs"?}. One BOS at most.
  virtual EncodedChat encode_chat(const Json& conversation) const = 0;
  // The same, ending in what makes the assistant answer (the generation prompt).
  virtual std::vector<int32_t> encode_question(const Json& conversation) const = 0;
  virtual std::optional<int32_t> eos() const = 0;  // what ends a document
  virtual int64_t vocab() const = 0;               // ids are below it
};

enum class LossOn : uint8_t { assistant, last, all };
LossOn parse_loss_on(std::string_view name);

// One row as ids and labels, however long.
struct EncodedRow {
  std::vector<int32_t> ids;
  std::vector<uint8_t> has_loss;  // as in Dataset: never the first
  bool may_continue = false;      // a `text`: what is too long goes on in the next sample
};

// Row of `format` (not automatic) -> ids and labels. Category::input, naming `where`, for a row that is not
// what the format says.
//   messages, sharegpt, alpaca, prompt-completion of lists: through the chat template; loss on every
//   assistant
//     turn and its end-of-turn token (of prompt-completion, the turns of the completion; with LossOn::last
//     the last turn alone).
//   prompt-completion of strings: tokenized joined as they are, EOS after; loss on every token that holds a
//   byte of
//     the completion, and EOS.
//   text: EOS appended unless present; loss on all but the first token.
//   tokens: as they are; without labels, loss on all but the first token. A label must be its own token or
//   -100.
// LossOn::all: loss on all but the first token, whatever the format (save labels that `tokens` rows give).
EncodedRow encode_row(const Json& row, DatasetFormat format, const Columns& columns,
                      const ChatEncoder& encoder, LossOn loss_on, const std::string& where);

// The row as a question to the model: its last assistant message (or its completion) taken away.
struct Question {
  std::vector<int32_t> prompt;
  std::string wanted;  // what was taken away
};
// Category::input for a row with nothing to answer (text, tokens, a conversation without an assistant's
// turn).
Question question_of(const Json& row, DatasetFormat format, const Columns& columns,
                     const ChatEncoder& encoder, const std::string& where);

}  // namespace qlora
