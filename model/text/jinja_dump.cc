#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "model/text/jinja_value.h"
#include "model/text/unicode.h"

// How Python prints values: str, repr and json.dumps.
namespace qlora::jinja {
namespace {

void escape(std::string& out, const char* format, char32_t code) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, format, static_cast<unsigned>(code));
  out += buffer;
}

std::string repr_text(const std::string& text) {
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const char32_t c = unicode::next(text, at);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (unicode::is_printable(c)) {
      unicode::append(out, c);
    } else {
      escape(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
  }
  return out + quote;
}

std::string json_text(const std::string& text, bool ascii) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const char32_t c = unicode::next(text, at);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000)) {
          escape(out, "\\u%04x", c);
        } else if (ascii && c >= 0x10000) {
          escape(out, "\\u%04x", 0xD800 + ((c - 0x10000) >> 10));
          escape(out, "\\u%04x", 0xDC00 + ((c - 0x10000) & 0x3FF));
        } else {
          unicode::append(out, c);
        }
    }
  }
  return out + '"';
}

void put(Str& out, std::string_view text) { out.text += text; }

void repr_items(Str& out, const std::vector<Value>& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i) put(out, ", ");
    append(out, repr(items[i]));
  }
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Str& out) : style_(style), out_(out) {}

  void write(const Value& v, int level) {
    if (const Str* s = v.as_str()) return append(out_, remade(*s, json_text(s->text, style_.ensure_ascii)));
    if (const List* l = v.as_list()) {
      return items('[', ']', l->items.size(), level, [&](size_t i) { write(l->items[i], level + 1); });
    }
    if (const Dict* d = v.as_dict()) return write_dict(*d, level);
    if (v.is_undefined() || v.as_namespace() || v.as_loop() || v.as_callable())
      throw std::invalid_argument(std::string("Object of type ") + v.type_name() +
                                  " is not JSON serializable");
    put(out_, scalar(v));
  }

 private:
  static std::string scalar(const Value& v) {
    if (v.is_none()) return "null";
    if (v.is<bool>()) return v.truth() ? "true" : "false";
    Int i;
    if (v.to_int(i)) return int_text(i);
    double d = 0;
    v.to_double(d);
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
    return float_repr(d);
  }

  void write_dict(const Dict& d, int level) {
    std::vector<const std::pair<Value, Value>*> rows;
    for (const auto& row : d.items) rows.push_back(&row);
    if (style_.sort_keys)
      std::stable_sort(rows.begin(), rows.end(),
                       [](auto* a, auto* b) { return to_str(a->first).text < to_str(b->first).text; });
    items('{', '}', rows.size(), level, [&](size_t i) {
      const Value& key = rows[i]->first;
      if (const Str* s = key.as_str())
        append(out_, remade(*s, json_text(s->text, style_.ensure_ascii)));
      else if (key.as_list() || key.as_dict())
        throw std::invalid_argument(std::string("keys must be str, int, float, bool or None, not ") +
                                    key.type_name());
      else
        put(out_, "\"" + scalar(key) + "\"");
      put(out_, style_.key_separator);
      write(rows[i]->second, level + 1);
    });
  }

  template <class Item>
  void items(char open, char close, size_t count, int level, Item item) {
    out_.text += open;
    for (size_t i = 0; i < count; ++i) {
      if (i) put(out_, style_.item_separator);
      new_line(level + 1);
      item(i);
    }
    if (count) new_line(level);
    out_.text += close;
  }

  void new_line(int level) {
    if (style_.indent < 0) return;
    out_.text += '\n';
    out_.text.append(static_cast<size_t>(style_.indent * level), ' ');
  }

  const JsonStyle& style_;
  Str& out_;
};

}  // namespace

Str repr(const Value& v) {
  if (const Str* s = v.as_str()) return remade(*s, repr_text(s->text));
  Str out;
  if (const List* l = v.as_list()) {
    put(out, l->tuple ? "(" : "[");
    repr_items(out, l->items);
    if (l->tuple && l->items.size() == 1) put(out, ",");
    put(out, l->tuple ? ")" : "]");
  } else if (const Dict* d = v.as_dict()) {
    put(out, "{");
    for (size_t i = 0; i < d->items.size(); ++i) {
      if (i) put(out, ", ");
      append(out, repr(d->items[i].first));
      put(out, ": ");
      append(out, repr(d->items[i].second));
    }
    put(out, "}");
  } else if (v.is_undefined()) {
    put(out, "Undefined");
  } else {
    return to_str(v);
  }
  return out;
}

Str to_str(const Value& v) {
  if (const Str* s = v.as_str()) return *s;
  if (v.as_list() || v.as_dict()) return repr(v);
  if (v.is_undefined()) return {};
  if (v.is_none()) return {"None", {}};
  if (v.is<bool>()) return {v.truth() ? "True" : "False", {}};
  Int i;
  if (v.to_int(i)) return {int_text(i), {}};
  double d;
  if (v.to_double(d)) return {float_repr(d), {}};
  return {std::string("<") + v.type_name() + ">", {}};
}

Str to_json(const Value& v, const JsonStyle& style) {
  Str out;
  JsonWriter(style, out).write(v, 0);
  return out;
}

}  // namespace qlora::jinja
