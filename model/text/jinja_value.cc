#include "model/text/jinja_value.h"

#include <charconv>
#include <cmath>
#include <stdexcept>

#include "model/text/unicode.h"

namespace qlora::jinja {
namespace {

void hold(Extent& container, const Value& item) {
  const Extent e = item.extent();
  container.depth = std::max(container.depth, e.depth + 1);
  container.bytes += e.bytes + 4;
  if (container.depth > kMaxDepth) throw std::length_error("values nest too deeply");
  if (container.bytes > kMaxBytes) throw std::length_error("values grow too large");
}

Value marked(const std::string& text, int32_t origin) {
  Str s{text, {}};
  if (!text.empty()) s.marks.push_back({0, text.size(), origin});
  return Value::str(std::move(s));
}

bool is_number(const Value& v) { return v.is<bool>() || v.is<Int>() || v.is<double>(); }

bool equal_numbers(const Value& a, const Value& b) {
  Int i, j;
  if (a.to_int(i) && b.to_int(j)) return i == j;
  double x, y;
  return a.to_double(x) && b.to_double(y) && x == y;
}

bool equal_dicts(const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = b.find(key);
    if (!other || !equal(value, *other)) return false;
  }
  return true;
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  for (const auto& [k, v] : items)
    if (const Str* s = k.as_str(); s && s->text == key) return &v;
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  for (const auto& [k, v] : items)
    if (equal(k, key)) return &v;
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  for (auto& [k, v] : items)
    if (equal(k, key)) {
      v = std::move(value);
      return;
    }
  items.emplace_back(key, std::move(value));
}

Value Value::list(std::vector<Value> items, bool tuple) {
  auto out = std::make_shared<List>();
  for (const Value& v : items) hold(out->extent, v);
  out->items = std::move(items);
  out->tuple = tuple;
  return Value(std::shared_ptr<const List>(std::move(out)));
}

Value Value::dict(Dict d) {
  for (const auto& [k, v] : d.items) hold(d.extent, k), hold(d.extent, v);
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(d))));
}

Value Value::from_json(const Json& json, int32_t origin, int level) {
  if (level > kMaxDepth) throw std::length_error("values nest too deeply");
  switch (json.type()) {
    case Json::value_t::boolean:
      return boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return integer(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      return integer(json.get<uint64_t>());
    case Json::value_t::number_float:
      return Value(json.get<double>());
    case Json::value_t::string:
      return marked(json.get_ref<const std::string&>(), origin);
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& v : json) items.push_back(from_json(v, origin, level + 1));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      Dict d;
      d.items.reserve(json.size());
      for (const auto& [k, v] : json.items())
        d.items.emplace_back(marked(k, origin), from_json(v, origin, level + 1));
      return dict(std::move(d));
    }
    default:
      return Value();
  }
}

bool Value::to_int(Int& out) const {
  if (const auto* i = std::get_if<Int>(&data_)) return out = *i, true;
  if (const auto* b = std::get_if<bool>(&data_)) return out = *b, true;
  return false;
}

bool Value::to_double(double& out) const {
  if (const auto* d = std::get_if<double>(&data_)) return out = *d, true;
  Int i;
  if (!to_int(i)) return false;
  out = static_cast<double>(i);
  return true;
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  double number;
  if (to_double(number)) return number != 0;
  if (const Str* s = as_str()) return !s->text.empty();
  if (const List* l = as_list()) return !l->items.empty();
  if (const Dict* d = as_dict()) return !d->items.empty();
  return true;
}

Extent Value::extent() const {
  if (const List* l = as_list()) return l->extent;
  if (const Dict* d = as_dict()) return d->extent;
  if (const Str* s = as_str()) return {0, s->text.size()};
  return {0, 8};
}

const char* Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is<bool>()) return "bool";
  if (is<Int>()) return "int";
  if (is<double>()) return "float";
  if (as_str()) return "str";
  if (const List* l = as_list()) return l->tuple ? "tuple" : "list";
  if (as_dict()) return "dict";
  if (as_namespace()) return "Namespace";
  if (as_loop()) return "LoopContext";
  return "function";
}

bool equal(const Value& a, const Value& b) {
  if (is_number(a) && is_number(b)) return equal_numbers(a, b);
  if (const Str* s = a.as_str()) return b.as_str() && s->text == b.as_str()->text;
  if (const List* l = a.as_list()) {
    const List* m = b.as_list();
    if (!m || l->tuple != m->tuple || l->items.size() != m->items.size()) return false;
    for (size_t i = 0; i < l->items.size(); ++i)
      if (!equal(l->items[i], m->items[i])) return false;
    return true;
  }
  if (const Dict* d = a.as_dict()) return b.as_dict() && equal_dicts(*d, *b.as_dict());
  if (a.is_none() || a.is_undefined()) return a.data().index() == b.data().index();
  if (a.as_namespace()) return a.as_namespace() == b.as_namespace();
  if (a.as_loop()) return a.as_loop() == b.as_loop();
  return a.as_callable() && a.as_callable() == b.as_callable();
}

std::string int_text(Int i) {
  if (i == 0) return "0";
  std::string digits;
  const bool negative = i < 0;
  for (unsigned __int128 u = negative ? -static_cast<unsigned __int128>(i)
                                      : static_cast<unsigned __int128>(i);
       u; u /= 10)
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(u % 10)));
  return negative ? "-" + digits : digits;
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  // "-d.ddde+XX": Python writes exponents from -4 to 15 out.
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  const int exponent = std::stoi(std::string(text.substr(e + 1)));
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed).ptr;
  std::string out(buffer, static_cast<size_t>(fixed - buffer));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void append(Str& out, const Str& more) {
  const size_t base = out.text.size();
  out.text += more.text;
  for (const Mark& m : more.marks) {
    const bool goes_on = m.origin != Mark::kGeneration && !out.marks.empty() &&
                         out.marks.back().origin == m.origin && out.marks.back().end == m.begin + base;
    if (goes_on)
      out.marks.back().end = m.end + base;
    else
      out.marks.push_back({m.begin + base, m.end + base, m.origin});
  }
}

Str substr(const Str& s, size_t begin, size_t end) {
  Str out{s.text.substr(begin, end - begin), {}};
  for (const Mark& m : s.marks) {
    const size_t from = std::max(m.begin, begin), to = std::min(m.end, end);
    if (from < to) out.marks.push_back({from - begin, to - begin, m.origin});
  }
  return out;
}

Str remade(const Str& s, std::string text) {
  Str out{std::move(text), {}};
  for (const Mark& m : s.marks)
    if (m.origin != Mark::kGeneration && !out.text.empty()) {
      out.marks.push_back({0, out.text.size(), m.origin});
      break;
    }
  return out;
}

}  // namespace qlora::jinja
