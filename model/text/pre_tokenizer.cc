#include "model/text/pre_tokenizer.h"

#include "model/text/unicode.h"

namespace qlora {
namespace {

enum class Kind { letter, number, space, other };

Kind kind(char32_t c) {
  if (unicode::is_letter(c)) return Kind::letter;
  if (unicode::is_number(c)) return Kind::number;
  if (unicode::is_space(c)) return Kind::space;
  return Kind::other;
}

Kind kind_at(std::string_view text, size_t at) { return kind(unicode::next(text, at)); }

size_t run_end(std::string_view text, size_t at, Kind wanted) {
  while (at < text.size()) {
    size_t after = at;
    if (kind(unicode::next(text, after)) != wanted) break;
    at = after;
  }
  return at;
}

size_t contraction(std::string_view text, size_t at) {
  for (const std::string_view s : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(at).starts_with(s)) return at + s.size();
  return at;
}

}  // namespace

size_t gpt2_match(std::string_view text, size_t at) {
  if (text[at] == '\'')
    if (const size_t end = contraction(text, at); end > at) return end;
  const size_t body = text[at] == ' ' && at + 1 < text.size() ? at + 1 : at;
  if (const Kind k = kind_at(text, body); k != Kind::space) return run_end(text, body, k);
  // White space: all of it at the end of the text, else all but the last character, which goes with what
  // follows; a single one stands alone.
  size_t end = at, last = at;
  while (end < text.size()) {
    size_t after = end;
    if (!unicode::is_space(unicode::next(text, after))) break;
    last = end;
    end = after;
  }
  return end == text.size() || last == at ? end : last;
}

size_t digits_match(std::string_view text, size_t at, bool individual) {
  const bool first = unicode::is_digit(unicode::next(text, at));
  while (at < text.size() && !(first && individual)) {
    size_t after = at;
    if (unicode::is_digit(unicode::next(text, after)) != first) break;
    at = after;
  }
  return at;
}

}  // namespace qlora
