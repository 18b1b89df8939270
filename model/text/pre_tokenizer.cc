#include "model/text/pre_tokenizer.h"

#include <array>
#include <cstdint>

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

// Most text is ASCII, whose properties are looked up in one go.
struct Ascii {
  std::array<Kind, 128> kind;
  std::array<bool, 128> digit;
};
const Ascii& ascii() {
  static const Ascii table = [] {
    Ascii t{};
    for (char32_t c = 0; c < 128; ++c) t.kind[c] = kind(c), t.digit[c] = unicode::is_digit(c);
    return t;
  }();
  return table;
}

// The kind of the character at text[at], and `at` past it.
Kind next_kind(const Ascii& table, std::string_view text, size_t& at) {
  const auto byte = static_cast<uint8_t>(text[at]);
  if (byte >= 128) return kind(unicode::next(text, at));
  ++at;
  return table.kind[byte];
}

bool next_is_digit(const Ascii& table, std::string_view text, size_t& at) {
  const auto byte = static_cast<uint8_t>(text[at]);
  if (byte >= 128) return unicode::is_digit(unicode::next(text, at));
  ++at;
  return table.digit[byte];
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
  const Ascii& table = ascii();
  size_t end = text[at] == ' ' && at + 1 < text.size() ? at + 1 : at;
  if (const Kind first = next_kind(table, text, end); first != Kind::space) {
    for (size_t after = end; after < text.size(); end = after)
      if (next_kind(table, text, after) != first) break;
    return end;
  }
  // White space: all of it at the end of the text, else all but the last character, which goes with what
  // follows; a single one stands alone.
  size_t last = at;
  end = at;
  while (end < text.size()) {
    size_t after = end;
    if (next_kind(table, text, after) != Kind::space) break;
    last = end;
    end = after;
  }
  return end == text.size() || last == at ? end : last;
}

size_t digits_match(std::string_view text, size_t at, bool individual) {
  const Ascii& table = ascii();
  const bool first = next_is_digit(table, text, at);
  while (at < text.size() && !(first && individual)) {
    size_t after = at;
    if (next_is_digit(table, text, after) != first) break;
    at = after;
  }
  return at;
}

}  // namespace qlora
