#pragma once
#include <string_view>
#include <variant>
#include <vector>

namespace qlora {

// The steps of tokenizer.json's `pre_tokenizer`, each a cut of the pieces that the one before it left.

// Digits: cuts at numeric characters, one by one or in runs.
struct DigitsStep {
  bool individual = false;
};

// ByteLevel: GPT-2's regex ('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+), or
// the piece as it is. From here on a piece is bytes; it is the last step.
struct ByteLevelStep {
  bool add_prefix_space = false;
  bool use_regex = true;
};

using PreTokenizerStep = std::variant<DigitsStep, ByteLevelStep>;

// A piece that goes to the model.
struct Word {
  std::string_view bytes;
  size_t begin;  // where it starts in the text
  size_t lead;   // the first `lead` bytes are not in the text (a space put in front)
};

// Calls sink(Word) for each piece of text[begin, end), in order. The Words live until the sink returns.
template <class Sink>
void pre_tokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, size_t begin, size_t end,
                  Sink&& sink);

// The end of the match of GPT-2's regex at text[at]; at < text.size().
size_t gpt2_match(std::string_view text, size_t at);
// The end of the Digits piece that starts at text[at]; at < text.size().
size_t digits_match(std::string_view text, size_t at, bool individual);

}  // namespace qlora

#include "model/text/pre_tokenizer.inl"
