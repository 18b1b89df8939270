#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/text/html.h"
#include "model/text/jinja_filters.h"
#include "model/text/unicode.h"

namespace qlora::jinja {
namespace {

using Filter = Value (*)(Interpreter&, const Value&, Args&);
struct Entry {
  const char* name;
  Filter filter;
};

Value tojson(Interpreter& in, const Value& v, Args& args) {
  JsonStyle style;
  style.ensure_ascii = flag(args, 0, "ensure_ascii");
  const Value* indent = argument(args, 1, "indent");
  // transformers' tojson: (ensure_ascii, indent, separators, sort_keys).
  if (indent && !indent->is_none()) {
    const Int n = in.integer(*indent, "tojson");
    if (n < 0 || n > 32) in.error("tojson: indent must be from 0 to 32");
    style.indent = static_cast<int>(n);
    style.item_separator = ",";
  }
  if (const Value* separators = argument(args, 2, "separators"); separators && !separators->is_none()) {
    const std::vector<Value> pair = in.iterate(*separators);
    if (pair.size() != 2) in.error("tojson: separators must be two strings");
    style.item_separator = in.to_string(pair[0]).text;
    style.key_separator = in.to_string(pair[1]).text;
  }
  style.sort_keys = flag(args, 3, "sort_keys");
  in.spend(v.extent().bytes / 64);
  return in.string(to_json(v, style));
}

Value trim(Interpreter& in, const Value& v, Args& args) {
  const Value* chars = argument(args, 0, "chars");
  const std::string wanted = chars && !chars->is_none() ? in.to_string(*chars).text : "";
  return in.string(strip(in.to_string(v), wanted.empty() ? nullptr : &wanted, true, true));
}

Value length(Interpreter& in, const Value& v, Args&) {
  size_t n = 0;
  if (const Str* s = v.as_str()) {
    in.spend(s->text.size() / 256);
    n = unicode::count(s->text);
  } else if (const List* l = v.as_list()) {
    n = l->items.size();
  } else if (const Dict* d = v.as_dict()) {
    n = d->items.size();
  } else if (!v.is_undefined()) {
    in.error(std::string("object of type '") + v.type_name() + "' has no len()");
  }
  return Value::integer(static_cast<Int>(n));
}

Value items(Interpreter& in, const Value& v, Args&) {
  std::vector<Value> out;
  if (const Dict* d = v.as_dict()) {
    in.spend(d->items.size());
    for (const auto& [key, value] : d->items) out.push_back(Value::list({key, value}, true));
  } else if (!v.is_undefined()) {
    in.error("Can only get item pairs from a mapping.");
  }
  return Value::list(std::move(out));
}

Value join(Interpreter& in, const Value& v, Args& args) {
  const Value* separator = argument(args, 0, "d");
  const Value* attribute = argument(args, 1, "attribute");
  const Str between = separator ? in.to_string(*separator) : Str{};
  Str out;
  bool first = true;
  for (const Value& item : in.iterate(v)) {
    if (!std::exchange(first, false)) append(out, between);
    append(out, in.to_string(attribute ? by_path(in, item, *attribute) : item));
    if (out.text.size() > kMaxBytes) in.error("a string grows too large");
  }
  return in.string(std::move(out));
}

Value string(Interpreter& in, const Value& v, Args&) { return in.string(in.to_string(v)); }
Value same(Interpreter&, const Value& v, Args&) { return v; }

enum class Keep { yes, no };

// select, reject: by a test (truth without one); selectattr, rejectattr: of an attribute.
template <Keep keep, bool of_attribute>
Value choose(Interpreter& in, const Value& v, Args& args) {
  if (!v.truth()) return Value::list({});  // whatever it is, as in the reference
  const size_t first = of_attribute ? 1 : 0;
  if (args.positional.size() < first) in.error("selectattr/rejectattr need an attribute");
  int which = -1;
  Args rest;
  if (args.positional.size() > first) {
    const Str* name = args.positional[first].as_str();
    which = name ? find_test(name->text) : -1;
    if (which < 0) in.error("no test named '" + in.to_string(args.positional[first]).text + "'");
    rest.positional.assign(args.positional.begin() + static_cast<ptrdiff_t>(first) + 1,
                           args.positional.end());
  }
  std::vector<Value> out;
  for (const Value& item : in.iterate(v)) {
    const Value subject = of_attribute ? by_path(in, item, args.positional[0]) : item;
    in.spend(1);
    const bool passes = which < 0 ? subject.truth() : in.test(which, subject, rest);
    if (passes == (keep == Keep::yes)) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value list(Interpreter& in, const Value& v, Args&) { return Value::list(in.iterate(v)); }

Value map(Interpreter& in, const Value& v, Args& args) {
  if (!v.truth()) return Value::list({});
  std::vector<Value> out;
  const Value* attribute = args.positional.empty() ? argument(args, 9, "attribute") : nullptr;
  const Value* absent = argument(args, 9, "default");
  int which = -1;
  Args rest;
  if (!attribute) {
    if (args.positional.empty() || !args.positional[0].as_str()) in.error("map needs a filter or attribute=");
    which = find_filter(args.positional[0].as_str()->text);
    if (which < 0) in.error("no filter named '" + args.positional[0].as_str()->text + "'");
    rest.positional.assign(args.positional.begin() + 1, args.positional.end());
    rest.named = args.named;
  }
  for (const Value& item : in.iterate(v)) {
    in.spend(1);
    Value made = attribute ? by_path(in, item, *attribute) : in.filter(which, item, rest);
    if (attribute && absent && made.is_undefined()) made = *absent;
    out.push_back(std::move(made));
  }
  return Value::list(std::move(out));
}

Value indent(Interpreter& in, const Value& v, Args& args) {
  const Value* width = argument(args, 0, "width");
  Str pad{"    ", {}};
  if (width && width->as_str()) {
    pad = *width->as_str();
  } else if (width) {
    const Int n = in.integer(*width, "indent");
    if (n > 256) in.error("indent: the width must be at most 256");
    pad.text.assign(static_cast<size_t>(std::max<Int>(n, 0)), ' ');
  }
  if (!v.as_str()) in.error(std::string("indent needs a string, not '") + v.type_name() + "'");
  const bool blank = flag(args, 2, "blank");
  Str text = in.to_string(v);
  text.text += '\n';  // the reference does this to keep a newline at the end
  in.spend(text.text.size() / 64 * (1 + text.marks.size() / 8));
  const std::vector<Str> lines = split_lines(text);
  Str out = flag(args, 1, "first") ? pad : Str{};
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i) out.text += '\n';
    if (i && (blank || !lines[i].text.empty())) append(out, pad);
    append(out, lines[i]);
    if (out.text.size() > kMaxBytes) in.error("a string grows too large");
  }
  return in.string(std::move(out));
}

Value fallback(Interpreter&, const Value& v, Args& args) {
  const bool use = v.is_undefined() || (flag(args, 1, "boolean") && !v.truth());
  const Value* other = argument(args, 0, "default_value");
  if (!use) return v;
  return other ? *other : Value::str("");
}

Value replace(Interpreter& in, const Value& v, Args& args) {
  const Value *from = argument(args, 0, "old"), *to = argument(args, 1, "new"),
              *n = argument(args, 2, "count");
  if (!from || !to) in.error("replace needs what to replace and by what");
  const Int count = n && !n->is_none() ? in.integer(*n, "replace") : -1;
  return in.string(replaced(in, in.to_string(v), in.to_string(*from).text, in.to_string(*to), count));
}

Value lower(Interpreter& in, const Value& v, Args&) {
  const Str s = in.to_string(v);
  return in.string(remade(s, unicode::lower(s.text)));
}
Value upper(Interpreter& in, const Value& v, Args&) {
  const Str s = in.to_string(v);
  return in.string(remade(s, unicode::upper(s.text)));
}
Value capitalize(Interpreter& in, const Value& v, Args&) { return in.string(capitalized(in.to_string(v))); }

// Jinja's own title: words part at spaces, dashes and opening brackets.
Value title(Interpreter& in, const Value& v, Args&) {
  const Str s = in.to_string(v);
  std::string out;
  bool start = true;
  for (size_t at = 0; at < s.text.size();) {
    const size_t begin = at;
    const char32_t c = unicode::next(s.text, at);
    const std::string one = s.text.substr(begin, at - begin);
    const bool parts =
        unicode::is_python_space(c) || (c < 0x80 && std::string_view("-({[<").find(one) != std::string::npos);
    out += start && !parts ? unicode::upper(one) : unicode::lower(one);
    start = parts;
  }
  return in.string(remade(s, std::move(out)));
}

Value escape(Interpreter& in, const Value& v, Args&) {
  const Str s = in.to_string(v);
  return in.string(remade(s, escape_html(s.text)));
}

template <bool last>
Value end_item(Interpreter& in, const Value& v, Args&) {
  const std::vector<Value> all = in.iterate(v);
  if (all.empty())
    return Value::undefined(last ? "No last item, sequence was empty."
                                 : "No first item, sequence was empty.");
  return last ? all.back() : all.front();
}

Value reverse(Interpreter& in, const Value& v, Args&) {
  std::vector<Value> all = in.iterate(v);
  std::reverse(all.begin(), all.end());
  if (!v.as_str()) return Value::list(std::move(all));
  Str out;
  for (const Value& c : all) append(out, *c.as_str());
  return in.string(std::move(out));
}

Value absolute(Interpreter& in, const Value& v, Args&) {
  return in.less(v, Value::integer(0)) ? in.binary('-', Value::integer(0), v) : v;
}

Value to_integer(Interpreter& in, const Value& v, Args& args) {
  in.must_be_defined(v);
  const Value* other = argument(args, 0, "default");
  Int i;
  double d;
  if (v.to_int(i)) return Value::integer(i);
  if (v.to_double(d) && std::fabs(d) < 9e18) return Value::integer(static_cast<int64_t>(d));
  if (const Str* s = v.as_str()) {
    const std::string text = strip(*s, nullptr, true, true).text;
    int64_t whole = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), whole);
    if (error == std::errc() && end == text.data() + text.size()) return Value::integer(whole);
    const auto [end2, error2] = std::from_chars(text.data(), text.data() + text.size(), d);
    if (error2 == std::errc() && end2 == text.data() + text.size() && std::fabs(d) < 9e18)
      return Value::integer(static_cast<int64_t>(d));
  }
  return other ? *other : Value::integer(0);
}

Value to_float(Interpreter& in, const Value& v, Args& args) {
  in.must_be_defined(v);
  const Value* other = argument(args, 0, "default");
  double d;
  if (v.to_double(d)) return Value(d);
  if (const Str* s = v.as_str()) {
    const std::string text = strip(*s, nullptr, true, true).text;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), d);
    if (error == std::errc() && end == text.data() + text.size()) return Value(d);
  }
  return other ? *other : Value(0.0);
}

Value attribute_filter(Interpreter& in, const Value& v, Args& args) {
  const Value* name = argument(args, 0, "name");
  if (!name || !name->as_str()) in.error("attr needs a name");
  return in.attribute(v, name->as_str()->text);
}

constexpr Entry kFilters[] = {{"tojson", tojson},
                              {"trim", trim},
                              {"length", length},
                              {"count", length},
                              {"items", items},
                              {"join", join},
                              {"string", string},
                              {"safe", same},
                              {"select", choose<Keep::yes, false>},
                              {"reject", choose<Keep::no, false>},
                              {"selectattr", choose<Keep::yes, true>},
                              {"rejectattr", choose<Keep::no, true>},
                              {"list", list},
                              {"map", map},
                              {"indent", indent},
                              {"default", fallback},
                              {"d", fallback},
                              {"replace", replace},
                              {"unique", filters::unique},
                              {"lower", lower},
                              {"upper", upper},
                              {"capitalize", capitalize},
                              {"title", title},
                              {"escape", escape},
                              {"e", escape},
                              {"dictsort", filters::dictsort},
                              {"sort", filters::sort},
                              {"first", end_item<false>},
                              {"last", end_item<true>},
                              {"reverse", reverse},
                              {"abs", absolute},
                              {"int", to_integer},
                              {"float", to_float},
                              {"sum", filters::sum},
                              {"max", filters::max},
                              {"min", filters::min},
                              {"attr", attribute_filter}};

}  // namespace

int find_filter(std::string_view name) {
  for (size_t i = 0; i < std::size(kFilters); ++i)
    if (name == kFilters[i].name) return static_cast<int>(i);
  return -1;
}

Value Interpreter::filter(int which, const Value& input, Args& args) {
  return kFilters[which].filter(*this, input, args);
}

}  // namespace qlora::jinja
