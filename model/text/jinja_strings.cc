#include <algorithm>

#include "model/text/jinja_interpreter.h"
#include "model/text/unicode.h"

// String work shared by methods and filters. Marks follow the characters they belong to.
namespace qlora::jinja {
namespace {

size_t previous(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (text[at] & 0xC0) == 0x80);
  return at;
}

bool breaks_line(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

Str strip(const Str& s, const std::string* chars, bool left, bool right) {
  const std::string_view text = s.text;
  const auto goes = [&](size_t at) {
    size_t cursor = at;
    const char32_t c = unicode::next(text, cursor);
    return chars ? chars->find(text.substr(at, cursor - at)) != std::string::npos
                 : unicode::is_python_space(c);
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end && goes(begin)) unicode::next(text, begin);
  while (right && end > begin && goes(previous(text, end))) end = previous(text, end);
  return substr(s, begin, end);
}

std::vector<Str> characters(const Str& s) {
  std::vector<int32_t> origin(s.marks.empty() ? 0 : s.text.size(), Mark::kGeneration);
  for (const Mark& m : s.marks)
    if (m.origin != Mark::kGeneration)
      std::fill(origin.begin() + static_cast<ptrdiff_t>(m.begin),
                origin.begin() + static_cast<ptrdiff_t>(m.end), m.origin);
  std::vector<Str> out;
  for (size_t at = 0; at < s.text.size();) {
    const size_t begin = at;
    unicode::next(s.text, at);
    out.push_back({s.text.substr(begin, at - begin), {}});
    if (!origin.empty() && origin[begin] != Mark::kGeneration)
      out.back().marks.push_back({0, at - begin, origin[begin]});
  }
  return out;
}

std::vector<Str> split_lines(const Str& s) {
  std::vector<Str> out;
  size_t begin = 0;
  for (size_t at = 0; at < s.text.size();) {
    const size_t end = at;
    const char32_t c = unicode::next(s.text, at);
    if (!breaks_line(c)) continue;
    if (c == '\r' && at < s.text.size() && s.text[at] == '\n') ++at;
    out.push_back(substr(s, begin, end));
    begin = at;
  }
  if (begin < s.text.size()) out.push_back(substr(s, begin, s.text.size()));
  return out;
}

Str replaced(Interpreter& in, const Str& s, const std::string& from, const Str& to, Int count) {
  Str out;
  size_t at = 0;
  const auto put = [&](const Str& part) {
    in.spend(1 + part.marks.size() / 8 + part.text.size() / 256);
    if (out.text.size() + part.text.size() > kMaxBytes) in.error("a string grows too large");
    append(out, part);
  };
  while (count != 0) {
    const size_t found = s.text.find(from, at);
    if (found == std::string::npos || (from.empty() && at >= s.text.size())) break;
    size_t next = found + from.size();
    if (from.empty()) {  // between all characters
      next = at;
      unicode::next(s.text, next);
      put(to);
      put(substr(s, at, next));
    } else {
      in.spend(s.marks.size() / 8);
      put(substr(s, at, found));
      put(to);
    }
    at = next;
    if (count > 0) --count;
  }
  if (from.empty() && count != 0) put(to);
  put(substr(s, at, s.text.size()));
  return out;
}

Str capitalized(const Str& s) {
  if (s.text.empty()) return s;
  size_t at = 0;
  const char32_t first = unicode::next(s.text, at);
  return remade(s, unicode::title(first) + unicode::lower(std::string_view(s.text).substr(at)));
}

}  // namespace qlora::jinja
