#include <algorithm>

#include "model/text/jinja_syntax.h"
#include "model/text/unicode.h"

namespace qlora::jinja {
namespace {

constexpr size_t kLargest = size_t{4} << 20;

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80);
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// "\r\n" and "\r" become "\n", and one at the very end goes.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t after = at;
    if (!unicode::is_python_space(unicode::next(text, after))) break;
    at = after;
  }
  return at;
}

// The length of `text` without the white space at its end.
size_t rstripped(std::string_view text) {
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
    size_t cursor = at;
    if (!unicode::is_python_space(unicode::next(text, cursor))) break;
    text = text.substr(0, at);
  }
  return text.size();
}

class Lexer {
 public:
  Lexer(std::string source, const std::string& name)
      : source_(std::move(source)), text_(source_), name_(name) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) outside();
    out_.push_back({Tok::end, line_, ""});
    return std::move(out_);
  }

 private:
  [[noreturn]] void bad(const std::string& message) const { throw TemplateError(name_, line_, message); }
  bool starts(std::string_view what) const { return text_.substr(at_).starts_with(what); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<ptrdiff_t>(at_),
                                         text_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  // Text up to the next tag, then the tag's opening.
  void outside() {
    size_t tag = at_;
    const auto opens = [&](size_t i) {
      return i + 1 < text_.size() && text_[i] == '{' &&
             (text_[i + 1] == '%' || text_[i + 1] == '{' || text_[i + 1] == '#');
    };
    while (tag < text_.size() && !opens(tag)) ++tag;
    const bool line_start = at_ == 0 || text_[at_ - 1] == '\n';
    std::string_view data = text_.substr(at_, tag - at_);
    if (tag == text_.size()) return put_data(data, tag);
    const char kind = text_[tag + 1], sign = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    if (sign == '-') {
      data = data.substr(0, rstripped(data));
    } else if (sign != '+' && kind != '{') {
      // lstrip_blocks: only white space between the line's start and the tag.
      const size_t line = data.rfind('\n') + 1;
      if ((line > 0 || line_start) && skip_space(data, line) == data.size()) data = data.substr(0, line);
    }
    put_data(data, tag);
    advance(tag + (sign == '-' || sign == '+' ? 3 : 2));
    if (kind == '#') return comment();
    if (kind == '{') return inside(Tok::print_begin, Tok::print_end, "}}");
    if (raw_block()) return;
    inside(Tok::block_begin, Tok::block_end, "%}");
  }

  void put_data(std::string_view data, size_t next) {
    if (!data.empty()) out_.push_back({Tok::data, line_, std::string(data)});
    advance(next);
  }

  // Moves past the end of a tag at `at`, and the white space it takes along.
  void close(size_t at, char sign, bool takes_newline) {
    if (sign == '-')
      at = skip_space(text_, at);
    else if (takes_newline && sign != '+' && at < text_.size() && text_[at] == '\n')
      ++at;
    advance(at);
  }

  void comment() {
    const size_t end = text_.find("#}", at_);
    if (end == std::string_view::npos) bad("a comment is not closed with #}");
    const char sign = end > at_ ? text_[end - 1] : '\0';
    close(end + 2, sign, true);
  }

  // {% raw %} … {% endraw %}: its text is data.
  bool raw_block() {
    size_t i = skip_space(text_, at_);
    if (!text_.substr(i).starts_with("raw")) return false;
    i = skip_space(text_, i + 3);
    const char sign = i < text_.size() ? text_[i] : '\0';
    if (sign == '-') ++i;
    if (!text_.substr(i).starts_with("%}")) return false;
    close(i + 2, sign == '-' ? '-' : '+', false);
    for (size_t from = at_;;) {
      const size_t tag = text_.find("{%", from);
      if (tag == std::string_view::npos) bad("{% raw %} is not closed with {% endraw %}");
      size_t j = tag + 2;
      const char open = j < text_.size() ? text_[j] : '\0';
      if (open == '-' || open == '+') ++j;
      j = skip_space(text_, j);
      if (text_.substr(j).starts_with("endraw")) {
        j = skip_space(text_, j + 6);
        const char end = j < text_.size() ? text_[j] : '\0';
        if (end == '-' || end == '+') ++j;
        if (text_.substr(j).starts_with("%}")) {
          std::string_view data = text_.substr(at_, tag - at_);
          if (open == '-') data = data.substr(0, rstripped(data));
          put_data(data, tag);
          close(j + 2, end, true);
          return true;
        }
      }
      from = tag + 2;
    }
  }

  void inside(Tok begin, Tok end, std::string_view closing) {
    out_.push_back({begin, line_, ""});
    std::string brackets;
    for (;;) {
      advance(skip_space(text_, at_));
      if (at_ >= text_.size()) bad("the template ends inside a tag");
      if (brackets.empty()) {
        const char sign = peek() == '-' || (peek() == '+' && begin == Tok::block_begin) ? peek() : '\0';
        if (text_.substr(at_ + (sign != '\0')).starts_with(closing)) {
          out_.push_back({end, line_, ""});
          return close(at_ + (sign != '\0') + 2, sign, begin == Tok::block_begin);
        }
      }
      token(brackets);
    }
  }

  void token(std::string& brackets) {
    const char c = peek();
    if (is_digit(c)) return number();
    if (is_name_byte(c)) {
      size_t end = at_;
      while (end < text_.size() && is_name_byte(text_[end])) ++end;
      return put(Tok::name, end);
    }
    if (c == '"' || c == '\'') return string(c);
    for (const std::string_view op : {"//", "**", "==", "!=", ">=", "<="})
      if (starts(op)) return put(Tok::op, at_ + 2);
    if (std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos)
      bad(std::string("unexpected character '") + c + "'");
    if (c == '(' || c == '[' || c == '{') {
      brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) bad(std::string("unexpected '") + c + "'");
      brackets.pop_back();
    }
    put(Tok::op, at_ + 1);
  }

  void put(Tok kind, size_t end) {
    out_.push_back({kind, line_, std::string(text_.substr(at_, end - at_))});
    advance(end);
  }

  // Digits with single underscores between them, from `i` on; the end, or i when there are none.
  template <class Digit>
  size_t digits(size_t i, Digit digit) const {
    while (i < text_.size() && digit(text_[i])) {
      ++i;
      if (i + 1 < text_.size() && text_[i] == '_' && digit(text_[i + 1])) ++i;
    }
    return i;
  }

  void number() {
    const char base = static_cast<char>(peek(1) | 0x20);
    if (peek() == '0' && (base == 'x' || base == 'o' || base == 'b')) {
      const size_t end = digits(at_ + 2, [&](char c) {
        if (base == 'x') return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
        return c >= '0' && c <= (base == 'o' ? '7' : '1');
      });
      if (end > at_ + 2) return put_number(Tok::integer, end);
    }
    size_t end = digits(at_, is_digit);
    bool real = false;
    if (end + 1 < text_.size() && text_[end] == '.' && is_digit(text_[end + 1])) {
      real = true;
      end = digits(end + 1, is_digit);
    }
    if (end < text_.size() && (text_[end] | 0x20) == 'e') {
      size_t e = end + 1;
      if (e < text_.size() && (text_[e] == '+' || text_[e] == '-')) ++e;
      if (const size_t after = digits(e, is_digit); after > e) {
        real = true;
        end = after;
      }
    }
    put_number(real ? Tok::real : Tok::integer, end);
  }

  void put_number(Tok kind, size_t end) {
    std::string digits(text_.substr(at_, end - at_));
    std::erase(digits, '_');
    out_.push_back({kind, line_, digits});
    advance(end);
  }

  void string(char quote) {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) bad("a string is not closed");
    const std::string_view body = text_.substr(at_ + 1, end - at_ - 1);
    out_.push_back({Tok::string, line_, unescaped(body)});
    advance(end + 1);
  }

  // Python's escapes; unknown ones stay as written.
  std::string unescaped(std::string_view body) const {
    std::string out;
    for (size_t i = 0; i < body.size(); ++i) {
      if (body[i] != '\\') {
        out += body[i];
        continue;
      }
      const char c = body[++i];
      static constexpr std::string_view from = "\\'\"abfnrtv", to = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t simple = from.find(c); simple != std::string_view::npos) {
        out += to[simple];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        unicode::append(out, code(body.substr(i + 1, length), length, 16));
        i += length;
      } else if (c >= '0' && c <= '7') {
        size_t length = 1;
        while (length < 3 && i + length < body.size() && body[i + length] >= '0' && body[i + length] <= '7')
          ++length;
        unicode::append(out, code(body.substr(i, length), length, 8));
        i += length - 1;
      } else if (c != '\n') {  // an escaped newline joins lines
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  char32_t code(std::string_view digits, size_t length, int base) const {
    char32_t value = 0;
    for (const char c : digits) {
      const int digit = is_digit(c)                              ? c - '0'
                        : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                                 : 99;
      if (digit >= base) bad("a string has a broken escape");
      value = value * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
    }
    if (digits.size() != length || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      bad("a string has a broken escape");
    return value;
  }

  const std::string source_;
  const std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> out_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  if (source.size() > kLargest)
    throw TemplateError(name, 1,
                        "the template has " + std::to_string(source.size()) + " bytes; that is too many");
  if (unicode::first_invalid(source) != std::string_view::npos)
    throw TemplateError(name, 1, "the template is not valid UTF-8");
  return Lexer(normalized(source), name).run();
}

}  // namespace qlora::jinja
