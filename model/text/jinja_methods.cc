#include <algorithm>

#include "model/text/jinja_interpreter.h"
#include "model/text/unicode.h"

// Methods of str, dict and list.
namespace qlora::jinja {
namespace {

using Method = Value (*)(Interpreter&, const Value&, Args&);
struct Entry {
  const char* name;
  Method method;
};

const Str& text_argument(Interpreter& in, const Args& args, size_t position, const char* name) {
  const Value* v = argument(args, position, name);
  if (!v || !v->as_str()) {
    if (v) in.must_be_defined(*v);
    in.error(std::string("argument '") + name + "' must be a string");
  }
  return *v->as_str();
}

const std::string* optional_text(Interpreter& in, const Args& args, size_t position, const char* name) {
  const Value* v = argument(args, position, name);
  if (!v || v->is_none()) return nullptr;
  return &text_argument(in, args, position, name).text;
}

Int optional_integer(Interpreter& in, const Args& args, size_t position, const char* name, Int absent) {
  const Value* v = argument(args, position, name);
  return v ? in.integer(*v, name) : absent;
}

template <bool left, bool right>
Value strip_method(Interpreter& in, const Value& self, Args& args) {
  return in.string(strip(*self.as_str(), optional_text(in, args, 0, "chars"), left, right));
}

// Runs of white space part the words; after `limit` of them the rest is one.
std::vector<Str> words(const Str& s, Int limit) {
  const std::string& text = s.text;
  std::vector<Str> out;
  // Past characters from `at` on while they are white space, or are not.
  const auto skip = [&](size_t at, bool space) {
    while (at < text.size()) {
      size_t after = at;
      if (unicode::is_python_space(unicode::next(text, after)) != space) break;
      at = after;
    }
    return at;
  };
  for (size_t at = skip(0, true); at < text.size(); --limit) {
    const size_t end = limit == 0 ? text.size() : skip(at, false);
    out.push_back(substr(s, at, end));
    at = skip(end, true);
  }
  return out;
}

Value list_of(Interpreter& in, std::vector<Str> parts) {
  std::vector<Value> items;
  for (Str& part : parts) items.push_back(in.string(std::move(part)));
  return Value::list(std::move(items));
}

Value split(Interpreter& in, const Value& self, Args& args) {
  const Str& s = *self.as_str();
  const std::string* separator = optional_text(in, args, 0, "sep");
  Int limit = optional_integer(in, args, 1, "maxsplit", -1);
  if (!separator) {
    in.spend(s.text.size() / 16 * (1 + s.marks.size() / 8));
    return list_of(in, words(s, limit));
  }
  if (separator->empty()) in.error("empty separator");
  std::vector<Str> out;
  size_t at = 0;
  for (size_t found; limit != 0 && (found = s.text.find(*separator, at)) != std::string::npos; --limit) {
    in.spend(1 + s.marks.size() / 8);
    out.push_back(substr(s, at, found));
    at = found + separator->size();
  }
  out.push_back(substr(s, at, s.text.size()));
  return list_of(in, std::move(out));
}

Value rsplit(Interpreter& in, const Value& self, Args& args) {
  const Str& s = *self.as_str();
  const std::string* separator = optional_text(in, args, 0, "sep");
  Int limit = optional_integer(in, args, 1, "maxsplit", -1);
  if (!separator || separator->empty()) in.error("rsplit() needs a separator");
  std::vector<Str> out;
  size_t end = s.text.size();
  while (limit != 0 && end >= separator->size()) {
    const size_t found = s.text.rfind(*separator, end - separator->size());
    if (found == std::string::npos) break;
    in.spend(1 + s.marks.size() / 8);
    out.push_back(substr(s, found + separator->size(), end));
    end = found;
    --limit;
  }
  out.push_back(substr(s, 0, end));
  std::reverse(out.begin(), out.end());
  return list_of(in, std::move(out));
}

template <bool start>
Value affix_test(Interpreter& in, const Value& self, Args& args) {
  const Value* v = argument(args, 0, "prefix");
  const std::string& text = self.as_str()->text;
  const auto fits = [&](const Value& affix) {
    if (!affix.as_str()) {
      in.must_be_defined(affix);
      in.error(std::string("startswith/endswith need a str or a tuple of str, not ") + affix.type_name());
    }
    return start ? text.starts_with(affix.as_str()->text) : text.ends_with(affix.as_str()->text);
  };
  if (!v) in.error("startswith/endswith need an argument");
  if (const List* l = v->as_list(); l && l->tuple)
    return Value::boolean(std::any_of(l->items.begin(), l->items.end(), fits));
  return Value::boolean(fits(*v));
}

Value replace(Interpreter& in, const Value& self, Args& args) {
  const std::string from = text_argument(in, args, 0, "old").text;
  return in.string(replaced(in, *self.as_str(), from, text_argument(in, args, 1, "new"),
                            optional_integer(in, args, 2, "count", -1)));
}

Value upper(Interpreter& in, const Value& self, Args&) {
  return in.string(remade(*self.as_str(), unicode::upper(self.as_str()->text)));
}
Value lower(Interpreter& in, const Value& self, Args&) {
  return in.string(remade(*self.as_str(), unicode::lower(self.as_str()->text)));
}
Value capitalize(Interpreter& in, const Value& self, Args&) { return in.string(capitalized(*self.as_str())); }

// str.title: letters after anything without case are titlecased.
Value title(Interpreter& in, const Value& self, Args&) {
  const std::string& text = self.as_str()->text;
  std::string out;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = unicode::next(text, at);
    const std::string one = text.substr(begin, at - begin);
    out += inside ? unicode::lower(one) : unicode::title(c);
    inside = unicode::lower(one) != one || unicode::upper(one) != one;
  }
  return in.string(remade(*self.as_str(), std::move(out)));
}

Value join(Interpreter& in, const Value& self, Args& args) {
  const Value* v = argument(args, 0, "iterable");
  if (!v) in.error("join() needs an argument");
  Str out;
  bool first = true;
  for (const Value& item : in.iterate(*v)) {
    if (!item.as_str()) in.error(std::string("join() needs strings, found ") + item.type_name());
    if (!std::exchange(first, false)) append(out, *self.as_str());
    append(out, *item.as_str());
    if (out.text.size() > kMaxBytes) in.error("a string grows too large");
  }
  return in.string(std::move(out));
}

template <bool from_right>
Value find(Interpreter& in, const Value& self, Args& args) {
  const std::string& text = self.as_str()->text;
  const std::string& what = text_argument(in, args, 0, "sub").text;
  const size_t at = from_right ? text.rfind(what) : text.find(what);
  in.spend(text.size() / 256);
  if (at == std::string::npos) return Value::integer(-1);
  return Value::integer(static_cast<Int>(unicode::count(std::string_view(text).substr(0, at))));
}

Value count(Interpreter& in, const Value& self, Args& args) {
  const std::string& what = text_argument(in, args, 0, "sub").text;
  if (what.empty()) return Value::integer(static_cast<Int>(unicode::count(self.as_str()->text) + 1));
  Int n = 0;
  for (size_t at = 0; (at = self.as_str()->text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  in.spend(self.as_str()->text.size() / 256);
  return Value::integer(n);
}

Value splitlines(Interpreter& in, const Value& self, Args& args) {
  if (!args.positional.empty() || !args.named.empty())
    in.error("splitlines() is supported without arguments");
  in.spend(self.as_str()->text.size() / 64 * (1 + self.as_str()->marks.size()));
  return list_of(in, split_lines(*self.as_str()));
}

template <bool (*property)(char32_t)>
Value all_are(Interpreter&, const Value& self, Args&) {
  const std::string& text = self.as_str()->text;
  for (size_t at = 0; at < text.size();)
    if (!property(unicode::next(text, at))) return Value::boolean(false);
  return Value::boolean(!text.empty());
}

Value removeprefix(Interpreter& in, const Value& self, Args& args) {
  const Str& s = *self.as_str();
  const std::string& prefix = text_argument(in, args, 0, "prefix").text;
  return in.string(substr(s, s.text.starts_with(prefix) ? prefix.size() : 0, s.text.size()));
}

Value removesuffix(Interpreter& in, const Value& self, Args& args) {
  const Str& s = *self.as_str();
  const std::string& suffix = text_argument(in, args, 0, "suffix").text;
  return in.string(substr(s, 0, s.text.size() - (s.text.ends_with(suffix) ? suffix.size() : 0)));
}

Value dict_get(Interpreter& in, const Value& self, Args& args) {
  if (args.positional.empty()) in.error("get() needs a key");
  in.spend(self.as_dict()->items.size() / 8);
  if (const Value* v = self.as_dict()->find(args.positional[0])) return *v;
  const Value* absent = argument(args, 1, "default");
  return absent ? *absent : Value();
}

template <int what>  // 0 keys, 1 values, 2 both
Value dict_view(Interpreter& in, const Value& self, Args&) {
  std::vector<Value> out;
  in.spend(self.as_dict()->items.size());
  for (const auto& [key, value] : self.as_dict()->items)
    out.push_back(what == 0 ? key : what == 1 ? value : Value::list({key, value}, true));
  return Value::list(std::move(out));
}

Value list_count(Interpreter& in, const Value& self, Args& args) {
  if (args.positional.empty()) in.error("count() needs an argument");
  in.spend(self.extent().bytes / 256);
  const auto& items = self.as_list()->items;
  return Value::integer(std::count_if(items.begin(), items.end(),
                                      [&](const Value& v) { return equal(v, args.positional[0]); }));
}

Value list_index(Interpreter& in, const Value& self, Args& args) {
  if (args.positional.empty()) in.error("index() needs an argument");
  in.spend(self.extent().bytes / 256);
  for (size_t i = 0; i < self.as_list()->items.size(); ++i)
    if (equal(self.as_list()->items[i], args.positional[0])) return Value::integer(static_cast<Int>(i));
  in.error(repr(args.positional[0]).text + " is not in list");
}

constexpr Entry kStr[] = {{"split", split},
                          {"rsplit", rsplit},
                          {"strip", strip_method<true, true>},
                          {"lstrip", strip_method<true, false>},
                          {"rstrip", strip_method<false, true>},
                          {"startswith", affix_test<true>},
                          {"endswith", affix_test<false>},
                          {"replace", replace},
                          {"upper", upper},
                          {"lower", lower},
                          {"title", title},
                          {"capitalize", capitalize},
                          {"join", join},
                          {"find", find<false>},
                          {"rfind", find<true>},
                          {"count", count},
                          {"splitlines", splitlines},
                          {"isspace", all_are<unicode::is_python_space>},
                          {"isalpha", all_are<unicode::is_letter>},
                          {"removeprefix", removeprefix},
                          {"removesuffix", removesuffix}};
constexpr Entry kDict[] = {
    {"get", dict_get}, {"keys", dict_view<0>}, {"values", dict_view<1>}, {"items", dict_view<2>}};
constexpr Entry kList[] = {{"count", list_count}, {"index", list_index}};
// What Python has too but this does not, or the reference's sandbox forbids: an error, not an undefined
// value.
constexpr const char* kUnsupportedStr[] = {
    "format",     "encode",      "center",   "ljust",      "rjust",     "zfill",     "partition",
    "rpartition", "swapcase",    "casefold", "expandtabs", "translate", "index",     "rindex",
    "isdigit",    "isalnum",     "isupper",  "islower",    "istitle",   "isdecimal", "isidentifier",
    "isnumeric",  "isprintable", "isascii",  "format_map"};
constexpr const char* kUnsupportedDict[] = {"update", "pop",  "popitem", "setdefault",
                                            "clear",  "copy", "fromkeys"};
constexpr const char* kUnsupportedList[] = {"append",  "extend", "insert", "pop", "remove",
                                            "reverse", "sort",   "clear",  "copy"};

template <size_t n>
Method find_in(const Entry (&table)[n], const std::string& name) {
  for (const Entry& e : table)
    if (name == e.name) return e.method;
  return nullptr;
}

template <size_t n>
bool is_in(const char* const (&table)[n], const std::string& name) {
  return std::any_of(std::begin(table), std::end(table), [&](const char* s) { return name == s; });
}

Method find_method(const Value& object, const std::string& name) {
  if (object.as_str()) return find_in(kStr, name);
  if (object.as_dict()) return find_in(kDict, name);
  if (object.as_list()) return find_in(kList, name);
  return nullptr;
}

}  // namespace

bool has_method(const Value& object, const std::string& name) {
  return find_method(object, name) || (object.as_str() && is_in(kUnsupportedStr, name)) ||
         (object.as_dict() && is_in(kUnsupportedDict, name)) ||
         (object.as_list() && is_in(kUnsupportedList, name));
}

Value Interpreter::call_method(const Callable& method, Args& args) {
  const Method found = find_method(*method.self, method.name);
  if (!found)
    error(std::string("method ") + method.self->type_name() + "." + method.name + " is not supported");
  return found(*this, *method.self, args);
}

}  // namespace qlora::jinja
