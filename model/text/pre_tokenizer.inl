#pragma once
#include <string>

namespace qlora {
namespace pre_tokenizer_detail {

// `piece` stands at `base` in the text.
template <class Sink>
void run(const std::vector<PreTokenizerStep>& steps, size_t step, std::string_view piece, size_t base,
         Sink& sink) {
  if (piece.empty()) return;
  if (step == steps.size()) return sink(Word{piece, base, 0});
  if (const auto* digits = std::get_if<DigitsStep>(&steps[step])) {
    for (size_t at = 0, end; at < piece.size(); at = end) {
      end = digits_match(piece, at, digits->individual);
      run(steps, step + 1, piece.substr(at, end - at), base + at, sink);
    }
    return;
  }
  const auto& bytes = std::get<ByteLevelStep>(steps[step]);
  std::string prefixed;
  const size_t added = bytes.add_prefix_space && piece.front() != ' ' ? 1 : 0;
  if (added) piece = prefixed = " " + std::string(piece);
  for (size_t at = 0, end; at < piece.size(); at = end) {
    end = bytes.use_regex ? gpt2_match(piece, at) : piece.size();
    const size_t lead = at < added ? added - at : 0;
    sink(Word{piece.substr(at, end - at), base + at + lead - added, lead});
  }
}

}  // namespace pre_tokenizer_detail

template <class Sink>
void pre_tokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, size_t begin, size_t end,
                  Sink&& sink) {
  pre_tokenizer_detail::run(steps, 0, text.substr(begin, end - begin), begin, sink);
}

}  // namespace qlora
