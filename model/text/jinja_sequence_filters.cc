#include <algorithm>

#include "model/text/jinja_filters.h"
#include "model/text/unicode.h"

// Filters that order, compare or add up a sequence.
namespace qlora::jinja {

bool flag(const Args& args, size_t position, const char* name) {
  const Value* v = argument(args, position, name);
  return v && v->truth();
}

Value by_path(Interpreter& in, Value v, const Value& path) {
  const Str* s = path.as_str();
  if (!s) return in.item(v, path);
  for (size_t begin = 0; begin <= s->text.size();) {
    const size_t end = std::min(s->text.find('.', begin), s->text.size());
    v = in.item(v, Value::str(s->text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return v;
}

Value sort_key(Interpreter& in, const Value& v, const Value* attribute, bool case_sensitive) {
  const Value key = attribute && !attribute->is_none() ? by_path(in, v, *attribute) : v;
  if (case_sensitive || !key.as_str()) return key;
  return Value::str(unicode::lower(key.as_str()->text));
}

namespace filters {

namespace {

void sort_by(Interpreter& in, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  in.spend(keyed.size() * 8);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? in.less(b.first, a.first) : in.less(a.first, b.first);
  });
}

}  // namespace

Value unique(Interpreter& in, const Value& v, Args& args) {
  const bool case_sensitive = flag(args, 0, "case_sensitive");
  const Value* attribute = argument(args, 1, "attribute");
  std::vector<Value> out, seen;
  for (const Value& item : in.iterate(v)) {
    const Value key = sort_key(in, item, attribute, case_sensitive);
    in.spend(1 + seen.size() / 4);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& s) { return equal(s, key); })) continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value dictsort(Interpreter& in, const Value& v, Args& args) {
  const Dict* d = v.as_dict();
  if (!d) in.error("dictsort needs a mapping");
  const Value* by = argument(args, 1, "by");
  const bool by_value = by && by->as_str() && by->as_str()->text == "value";
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : d->items)
    keyed.emplace_back(sort_key(in, by_value ? value : key, nullptr, flag(args, 0, "case_sensitive")),
                       Value::list({key, value}, true));
  sort_by(in, keyed, flag(args, 2, "reverse"));
  std::vector<Value> out;
  for (auto& [key, pair] : keyed) out.push_back(std::move(pair));
  return Value::list(std::move(out));
}

Value sort(Interpreter& in, const Value& v, Args& args) {
  const Value* attribute = argument(args, 2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : in.iterate(v))
    keyed.emplace_back(sort_key(in, item, attribute, flag(args, 1, "case_sensitive")), item);
  sort_by(in, keyed, flag(args, 0, "reverse"));
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value sum(Interpreter& in, const Value& v, Args& args) {
  const Value* attribute = argument(args, 0, "attribute");
  const Value* start = argument(args, 1, "start");
  Value total = start ? *start : Value::integer(0);
  for (const Value& item : in.iterate(v))
    total = in.binary('+', total, attribute && !attribute->is_none() ? by_path(in, item, *attribute) : item);
  return total;
}

namespace {

template <bool largest>
Value extreme(Interpreter& in, const Value& v, Args& args) {
  const Value* attribute = argument(args, 1, "attribute");
  const std::vector<Value> all = in.iterate(v);
  if (all.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  const auto key = [&](size_t i) { return sort_key(in, all[i], attribute, flag(args, 0, "case_sensitive")); };
  for (size_t i = 1; i < all.size(); ++i)
    if (largest ? in.less(key(best), key(i)) : in.less(key(i), key(best))) best = i;
  return all[best];
}

}  // namespace

Value max(Interpreter& in, const Value& v, Args& args) { return extreme<true>(in, v, args); }
Value min(Interpreter& in, const Value& v, Args& args) { return extreme<false>(in, v, args); }

}  // namespace filters
}  // namespace qlora::jinja
