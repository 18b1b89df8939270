#include "tools/common/options.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "memory/error.h"
#include "tools/common/option_value.h"

namespace qlora::tools {
namespace {

using Json = nlohmann::ordered_json;

// Numbers as YAML 1.1 readers know them: they want a point in the mantissa and a sign in the exponent.
std::string yaml_real(double value) {
  std::string text = nlohmann::json(value).dump();
  const size_t e = text.find('e');
  if (e == std::string::npos) return text;
  if (text.find('.') == std::string::npos) text.insert(e, ".0");
  const size_t sign = text.find('e') + 1;
  if (text[sign] != '-' && text[sign] != '+') text.insert(sign, "+");
  return text;
}

// JSON's escapes are a subset of those that YAML's double quotes know.
std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// A choice that is a number (bits, block_size) is written as one.
bool is_integer(Kind kind, const std::string& value) {
  return kind == Kind::integer || (kind == Kind::choice && parse_integer(value));
}

std::string yaml_value(Kind kind, const std::string& value) {
  if (is_integer(kind, value)) return value;
  switch (kind) {
    case Kind::toggle:
      return value;
    case Kind::real:
      return yaml_real(*parse_real(value));
    default:
      return quoted(value);
  }
}

Json json_value(Kind kind, const std::string& value) {
  if (is_integer(kind, value)) return *parse_integer(value);
  switch (kind) {
    case Kind::real:
      return *parse_real(value);
    case Kind::toggle:
      return value == "true";
    default:
      return value;
  }
}

void check_kind(const Option& option, bool fits, const char* wanted) {
  check(fits, "option ", option.name, " is not read as ", wanted);
}

}  // namespace

std::string with_dashes(std::string_view name) {
  std::string out(name);
  for (char& c : out)
    if (c == '_') c = '-';
  return out;
}

std::string with_underscores(std::string_view name) {
  std::string out(name);
  for (char& c : out)
    if (c == '-') c = '_';
  return out;
}

Options::Options(const Table& table) : table_(&table) {
  for (const Option& option : table.options)
    if (!option.fallback.empty()) entries_[option.name] = {{option.fallback}, ""};
}

const Option& Options::option(std::string_view name) const {
  for (const Option& option : table_->options)
    if (option.name == name) return option;
  fail(Category::internal, table_->program, " has no option ", name);
}

const Options::Entry* Options::entry(std::string_view name) const {
  const auto found = entries_.find(option(name).name);
  return found == entries_.end() || found->second.values.empty() ? nullptr : &found->second;
}

template <>
std::optional<std::string> Options::find(std::string_view name) const {
  check_kind(option(name), option(name).kind != Kind::repeat, "one text");
  const Entry* found = entry(name);
  return found ? std::optional(found->values.front()) : std::nullopt;
}

template <>
std::optional<int64_t> Options::find(std::string_view name) const {
  const Kind kind = option(name).kind;  // a choice may be a number: block-size
  check_kind(option(name), kind == Kind::integer || kind == Kind::choice, "integer");
  const Entry* found = entry(name);
  if (!found) return std::nullopt;
  const auto value = parse_integer(found->values.front());
  check(value.has_value(), "option ", name, " holds no integer");
  return value;
}

template <>
std::optional<double> Options::find(std::string_view name) const {
  check_kind(option(name), option(name).kind == Kind::real, "real");
  const Entry* found = entry(name);
  return found ? parse_real(found->values.front()) : std::nullopt;
}

template <>
std::optional<bool> Options::find(std::string_view name) const {
  check_kind(option(name), option(name).kind == Kind::toggle, "switch");
  const Entry* found = entry(name);
  return found ? std::optional(found->values.front() == "true") : std::nullopt;
}

template <>
std::optional<uint64_t> Options::find(std::string_view name) const {
  check_kind(option(name), option(name).kind == Kind::bytes, "bytes");
  const Entry* found = entry(name);
  return found ? parse_bytes(found->values.front()) : std::nullopt;
}

template <>
std::optional<std::vector<std::string>> Options::find(std::string_view name) const {
  const Kind kind = option(name).kind;
  check_kind(option(name), kind == Kind::words || kind == Kind::repeat, "list");
  const Entry* found = entry(name);
  if (!found) return kind == Kind::repeat ? std::optional(std::vector<std::string>{}) : std::nullopt;
  return kind == Kind::repeat ? found->values : split_words(found->values.front());
}

template <class T>
T Options::get(std::string_view name) const {
  std::optional<T> value = find<T>(name);
  check(value.has_value(), "option ", name, " has no value");
  return *std::move(value);
}
template std::string Options::get(std::string_view) const;
template int64_t Options::get(std::string_view) const;
template double Options::get(std::string_view) const;
template bool Options::get(std::string_view) const;
template uint64_t Options::get(std::string_view) const;
template std::vector<std::string> Options::get(std::string_view) const;

std::vector<std::pair<std::string, std::string>> Options::pairs(std::string_view name) const {
  check_kind(option(name), option(name).kind == Kind::pairs, "pairs");
  std::vector<std::pair<std::string, std::string>> out;
  const Entry* found = entry(name);
  if (!found) return out;
  for (const std::string& word : split_words(found->values.front())) {
    const size_t equals = word.find('=');
    out.emplace_back(word.substr(0, equals), word.substr(equals + 1));
  }
  return out;
}

bool Options::given(std::string_view name) const {
  const Entry* found = entry(name);
  return found && !found->origin.empty();
}

std::string Options::origin(std::string_view name) const {
  return given(name) ? entry(name)->origin : cat("--", option(name).name);
}

void Options::settle(std::string_view name, const std::string& value) {
  const Option& target = option(name);
  entries_[target.name].values = {canonical_value(target, value, cat("--", target.name))};
}

std::vector<Setting> Options::settings_in_force() const {
  std::vector<Setting> settings;
  for (const Option& option : table_->options) {
    const Entry* found = entry(option.name);
    if (found && !option.transient) settings.push_back({option.name, option.kind, found->values});
  }
  return settings;
}

std::string Options::to_yaml() const {
  std::string out;
  for (const Setting& setting : settings_in_force()) {
    out += with_underscores(setting.name) + ":";
    if (setting.kind != Kind::repeat) out += " " + yaml_value(setting.kind, setting.values.front()) + "\n";
    if (setting.kind == Kind::repeat) {
      out += "\n";
      for (const std::string& value : setting.values) out += "  - " + quoted(value) + "\n";
    }
  }
  return out;
}

nlohmann::ordered_json Options::to_json() const {
  Json out = Json::object();
  for (const Setting& setting : settings_in_force()) {
    Json& value = out[with_underscores(setting.name)];
    value = setting.kind == Kind::repeat ? Json(setting.values)
                                         : json_value(setting.kind, setting.values.front());
  }
  return out;
}

}  // namespace qlora::tools
