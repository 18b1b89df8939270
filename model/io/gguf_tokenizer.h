#pragma once
#include "model/io/gguf.h"
#include "model/text/tokenizer.h"

namespace qlora {

// The tokenizer fields of a GGUF's metadata, their types and lengths checked (types and scores as long as the
// tokens, ids inside the vocabulary). Category::input naming file and key.
GgufTokenizerData read_gguf_tokenizer(const GgufFile& file);

}  // namespace qlora
