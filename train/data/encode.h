#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/io/json.h"
#include "train/data/row_encoder.h"
#include "train/data/rows.h"

namespace qlora {

// One row as ids and labels, however long.
struct EncodedRow {
  std::vector<int32_t> ids;
  std::vector<uint8_t> has_loss;  // as in Dataset: never the first
  bool may_continue = false;      // a `text`: what is too long goes on in the next sample
};

// Row of `format` (not automatic) -> ids and labels. Category::input, naming `where`, for a row that is not
// what the format says.
// - messages, sharegpt, alpaca, prompt-completion of lists: through the chat template. Loss where the encoder
//   says; of prompt-completion the answers inside the prompt are masked.
// - prompt-completion of strings: tokenized joined as they are, EOS after. Loss on every token that holds a
//   byte of the completion, and on EOS.
// - text: EOS appended unless present. Loss on all but the first token.
// - tokens: as they are. Without labels, loss on all but the first token; a label is its own token or -100.
// LossOn::all: loss on all but the first token, whatever the format (save labels that `tokens` rows give).
EncodedRow encode_row(const Json& row, DatasetFormat format, const Columns& columns,
                      const RowEncoder& encoder, const std::string& where);

// The row as a question to the model: its last assistant message (or its completion) taken away.
struct Question {
  std::vector<int32_t> prompt;
  std::string wanted;  // what was taken away
};
// Category::input for a row with nothing to answer (text, tokens, a conversation without an answer).
Question question_of(const Json& row, DatasetFormat format, const Columns& columns, const RowEncoder& encoder,
                     const std::string& where);

}  // namespace qlora
