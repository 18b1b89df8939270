#include "tools/common/option_value.h"

#include <charconv>
#include <cmath>

#include "memory/error.h"
#include "tools/common/nearest.h"

namespace qlora::tools {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string join(const std::vector<std::string>& words, const char* between) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

// A whole number in all its digits.
std::string bound_text(double bound) {
  const bool whole = std::abs(bound) < 1e15 && std::trunc(bound) == bound;
  return whole ? std::to_string(static_cast<int64_t>(bound)) : cat(bound);
}

// "at least 1", "from 0 to below 1", …
std::string range_text(const Option& option) {
  const std::string least = bound_text(option.min), most = bound_text(option.max);
  const bool low = std::isfinite(option.min), high = std::isfinite(option.max);
  if (low && high)
    return cat(option.above_min ? "above " : "from ", least, option.below_max ? " to below " : " to ", most);
  if (low) return (option.above_min ? "above " : "at least ") + least;
  return (option.below_max ? "below " : "at most ") + most;
}

void check_range(const Option& option, double value, std::string_view text, const std::string& origin) {
  const bool low = option.above_min ? value > option.min : value >= option.min;
  const bool high = option.below_max ? value < option.max : value <= option.max;
  if (!low || !high)
    fail(Category::usage, origin, ": ", text, " is out of range; give a number ", range_text(option));
}

std::string canonical_choice(const Option& option, std::string_view text, const std::string& origin) {
  for (const ValueRule& rule : option.rules) {
    if (!equal_without_case(rule.from, text)) continue;
    if (rule.then == ValueRule::refuse) fail(Category::usage, origin, ": ", text, " ", rule.text);
    if (rule.then == ValueRule::use) return rule.text;
  }
  for (const std::string& choice : option.choices)
    if (equal_without_case(choice, text)) return choice;
  fail(Category::usage, origin, ": '", text, "' is not a choice, nearest is ", nearest(text, option.choices),
       "; give one of ", join(option.choices, "|"));
}

std::string canonical_words(const Option& option, std::string_view text, const std::string& origin) {
  std::vector<std::string> words = split_words(text);
  for (std::string& word : words) {
    if (word.empty()) fail(Category::usage, origin, ": '", text, "' has an empty entry; give a comma list");
    if (option.choices.empty()) continue;
    word = canonical_choice(option, word, origin);
    if (word == "none" && words.size() > 1)
      fail(Category::usage, origin, ": '", text,
           "' names none beside others; give none alone or leave it out");
  }
  // Without choices the text stays as written: a regular expression may hold commas and blanks of its own.
  return option.choices.empty() ? std::string(text) : join(words, ",");
}

void check_pairs(std::string_view text, const std::string& origin) {
  for (const std::string& word : split_words(text)) {
    const size_t equals = word.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == word.size())
      fail(Category::usage, origin, ": '", word, "' is not key=value; give key=value,key=value");
  }
}

}  // namespace

std::optional<int64_t> parse_integer(std::string_view text) { return parse_number<int64_t>(text); }

std::optional<double> parse_real(std::string_view text) {
  const std::optional<double> value = parse_number<double>(text);
  return value && std::isfinite(*value) ? value : std::nullopt;
}

std::optional<bool> parse_bool(std::string_view text) {
  for (const char* yes : {"true", "yes", "on"})
    if (equal_without_case(text, yes)) return true;
  for (const char* no : {"false", "no", "off"})
    if (equal_without_case(text, no)) return false;
  return std::nullopt;
}

std::optional<uint64_t> parse_bytes(std::string_view text) {
  size_t digits = 0;
  while (digits < text.size() && (text[digits] == '.' || (text[digits] >= '0' && text[digits] <= '9')))
    ++digits;
  const std::string_view number = text.substr(0, digits),
                         unit = text.substr(digits + (text.substr(digits, 1) == " " ? 1 : 0));
  double scale = 0;
  if (unit.empty() || equal_without_case(unit, "b")) scale = 1;
  const std::string_view prefixes = "kmgt";
  for (size_t i = 0; i < prefixes.size(); ++i) {
    const std::string decimal = {prefixes[i], 'b'}, binary = {prefixes[i], 'i', 'b'};
    if (equal_without_case(unit, decimal)) scale = std::pow(1000.0, static_cast<double>(i + 1));
    if (equal_without_case(unit, binary)) scale = std::pow(1024.0, static_cast<double>(i + 1));
  }
  if (scale == 0) return std::nullopt;
  // A plain number is read as an integer: a double would lose bytes above 2^53.
  if (scale == 1) {
    const auto bytes = parse_number<uint64_t>(number);
    return bytes && *bytes <= uint64_t{INT64_MAX} ? bytes : std::nullopt;
  }
  const auto value = parse_real(number);
  if (!value || *value * scale >= 9.2e18) return std::nullopt;
  return static_cast<uint64_t>(*value * scale);
}

std::optional<DeviceName> parse_device(std::string_view text) {
  using Which = DeviceName::Which;
  if (equal_without_case(text, "auto")) return DeviceName{};
  if (equal_without_case(text, "cpu")) return DeviceName{Which::cpu};
  if (equal_without_case(text, "cuda")) return DeviceName{Which::cuda};
  if (text.size() < 6 || !equal_without_case(text.substr(0, 5), "cuda:")) return std::nullopt;
  const auto index = parse_integer(text.substr(5));
  if (!index || *index < 0 || *index > 255) return std::nullopt;
  return DeviceName{Which::cuda, static_cast<int>(*index)};
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  for (size_t start = 0;;) {
    const size_t comma = text.find(',', start);
    words.emplace_back(trim(text.substr(start, comma == std::string_view::npos ? comma : comma - start)));
    if (comma == std::string_view::npos) return words;
    start = comma + 1;
  }
}

bool equal_without_case(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (lower(a[i]) != lower(b[i])) return false;
  return true;
}

bool valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : (lead & 0xf0) == 0xe0 ? 3 : 4;
    if (length > text.size() - i || (length == 4 && (lead < 0xf0 || lead > 0xf4))) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3f);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (overlong || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return false;
    i += length;
  }
  return true;
}

std::string canonical_value(const Option& option, std::string_view text, const std::string& origin) {
  // config.yaml and result.json are UTF-8: a value that they cannot hold could not be run again.
  if (!valid_utf8(text))
    fail(Category::usage, origin, ": the value is not UTF-8; rename the file or retype the text");
  switch (option.kind) {
    case Kind::integer: {
      const auto value = parse_integer(text);
      if (!value) fail(Category::usage, origin, ": '", text, "' is not a whole number; give digits only");
      check_range(option, static_cast<double>(*value), text, origin);
      return std::to_string(*value);
    }
    case Kind::real: {
      const auto value = parse_real(text);
      if (!value) fail(Category::usage, origin, ": '", text, "' is not a number; write it as 0.0002 or 2e-4");
      check_range(option, *value, text, origin);
      return std::string(text);
    }
    case Kind::bytes:
      if (equal_without_case(text, "auto")) return "auto";
      if (!parse_bytes(text))
        fail(Category::usage, origin, ": '", text,
             "' is not a size; give auto, 8GiB, 500MiB, 680MB or a number of bytes");
      return std::string(text);
    case Kind::toggle: {
      const auto value = parse_bool(text);
      if (!value) fail(Category::usage, origin, ": '", text, "' is neither true nor false; give one of them");
      return *value ? "true" : "false";
    }
    case Kind::choice:
      return canonical_choice(option, text, origin);
    case Kind::words:
      return canonical_words(option, text, origin);
    case Kind::pairs:
      check_pairs(text, origin);
      return std::string(text);
    case Kind::device:
      if (!parse_device(text))
        fail(Category::usage, origin, ": '", text, "' is no device; give auto, cpu, cuda or cuda:N");
      return std::string(text);
    case Kind::text:
    case Kind::repeat:
      return std::string(text);
  }
  fail(Category::internal, "option ", option.name, " has an unknown kind");
}

std::string value_name(const Option& option) {
  if (!option.value.empty()) return option.value;
  switch (option.kind) {
    case Kind::integer:
      return "N";
    case Kind::real:
      return "X";
    case Kind::bytes:
      return "auto|BYTES";
    case Kind::choice:
      return join(option.choices, "|");
    case Kind::words:
      return option.choices.empty() ? "LIST" : join(option.choices, ",");
    case Kind::pairs:
      return "key=value,...";
    case Kind::device:
      return "auto|cpu|cuda[:N]";
    case Kind::toggle:
      return "";
    case Kind::text:
    case Kind::repeat:
      return "TEXT";
  }
  return "";
}

}  // namespace qlora::tools
