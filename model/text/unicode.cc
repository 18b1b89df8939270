#include "model/text/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "model/text/unicode_tables.h"

namespace qlora::unicode {
namespace {

enum Class : uint8_t { letter = 1, number = 2, digit = 4, space = 8, word = 16, python_space = 32 };

bool in_ranges(char32_t code, const CodeRange* table, size_t count) {
  const CodeRange* end = table + count;
  const CodeRange* found =
      std::lower_bound(table, end, code, [](const CodeRange& r, char32_t c) { return r.last < c; });
  return found != end && found->first <= code;
}

uint8_t classify(char32_t code) {
  return (in_ranges(code, letters, letters_count) ? letter : 0) |
         (in_ranges(code, numbers, numbers_count) ? number : 0) |
         (in_ranges(code, digits, digits_count) ? digit : 0) |
         (in_ranges(code, spaces, spaces_count) ? space : 0) |
         (in_ranges(code, words, words_count) ? word : 0) |
         (in_ranges(code, python_spaces, python_spaces_count) ? python_space : 0);
}

// The first 2048 code points (all two-byte sequences) are classified once.
constexpr char32_t kDirect = 0x800;
const std::array<uint8_t, kDirect>& direct() {
  static const auto table = [] {
    std::array<uint8_t, kDirect> t{};
    for (char32_t c = 0; c < kDirect; ++c) t[c] = classify(c);
    return t;
  }();
  return table;
}

bool is(char32_t code, Class what, const CodeRange* table, size_t count) {
  if (code < kDirect) return direct()[code] & what;
  return in_ranges(code, table, count);
}

void append_cased(std::string& out, char32_t code, const CaseRun* runs, size_t run_count,
                  const CaseSpecial* specials, size_t special_count) {
  const CaseSpecial* special = std::lower_bound(specials, specials + special_count, code,
                                                [](const CaseSpecial& s, char32_t c) { return s.code < c; });
  if (special != specials + special_count && special->code == code) {
    for (uint32_t to : special->to)
      if (to) append(out, to);
    return;
  }
  const CaseRun* run =
      std::lower_bound(runs, runs + run_count, code, [](const CaseRun& r, char32_t c) { return r.last < c; });
  const bool hit = run != runs + run_count && run->first <= code && (code - run->first) % run->stride == 0;
  append(out, hit ? code + run->delta : code);
}

}  // namespace

char32_t next(std::string_view text, size_t& at, bool* valid) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(at++);
  if (valid) *valid = true;
  if (lead < 0x80) return lead;
  int more = 0;
  char32_t code = 0;
  // The second byte has a narrower range where it would make an overlong form, a surrogate or > U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    more = 1, code = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    more = 2, code = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    more = 3, code = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  }
  const int wanted = more;
  while (more > 0 && at < text.size() && byte(at) >= low && byte(at) <= high) {
    code = code << 6 | (byte(at++) & 0x3F);
    low = 0x80, high = 0xBF;
    --more;
  }
  if (wanted > 0 && more == 0) return code;
  if (valid) *valid = false;
  return 0xFFFD;
}

void append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

size_t first_invalid(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    uint64_t eight = 0;
    if (text.size() - at >= sizeof eight) std::memcpy(&eight, text.data() + at, sizeof eight);
    if (text.size() - at >= sizeof eight && (eight & 0x8080808080808080u) == 0) {
      at += sizeof eight;
      continue;
    }
    const size_t begin = at;
    bool valid;
    next(text, at, &valid);
    if (!valid) return begin;
  }
  return std::string_view::npos;
}

std::string lossy(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) append(out, next(text, at));
  return out;
}

size_t complete_prefix(std::string_view text) {
  // Only the last three bytes can belong to an unfinished sequence.
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const uint8_t byte = static_cast<uint8_t>(text[text.size() - back]);
    if (byte < 0x80) break;
    if (byte < 0xC0) continue;
    const size_t wanted = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    size_t at = text.size() - back;
    bool valid;
    next(text, at, &valid);
    const bool unfinished = !valid && at == text.size() && wanted > back && byte >= 0xC2 && byte <= 0xF4;
    return unfinished ? text.size() - back : text.size();
  }
  return text.size();
}

size_t count(std::string_view text) {
  size_t n = 0;
  for (size_t at = 0; at < text.size(); ++n) next(text, at);
  return n;
}

bool is_letter(char32_t c) { return is(c, letter, letters, letters_count); }
bool is_number(char32_t c) { return is(c, number, numbers, numbers_count); }
bool is_digit(char32_t c) { return is(c, digit, digits, digits_count); }
bool is_space(char32_t c) { return is(c, space, spaces, spaces_count); }
bool is_word(char32_t c) { return is(c, word, words, words_count); }
bool is_python_space(char32_t c) { return is(c, python_space, python_spaces, python_spaces_count); }

bool is_printable(char32_t c) { return !in_ranges(c, unprintables, unprintables_count); }

std::string lower(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();)
    append_cased(out, next(text, at), lower_runs, lower_runs_count, lower_specials, lower_specials_count);
  return out;
}

std::string upper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();)
    append_cased(out, next(text, at), upper_runs, upper_runs_count, upper_specials, upper_specials_count);
  return out;
}

std::string title(char32_t code) {
  std::string out;
  append_cased(out, code, title_runs, title_runs_count, title_specials, title_specials_count);
  return out;
}

}  // namespace qlora::unicode
