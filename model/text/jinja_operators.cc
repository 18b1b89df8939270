#include <algorithm>
#include <cmath>

#include "model/text/jinja_interpreter.h"
#include "model/text/unicode.h"

// Python's operators.
namespace qlora::jinja {
namespace {

enum Op {
  add = '+',
  subtract = '-',
  multiply = '*',
  divide = '/',
  modulo = '%',
  floor_divide = '/' + 256,
  power = '*' + 256
};

constexpr Int kMostNegative = static_cast<Int>(static_cast<unsigned __int128>(1) << 127);

const char* symbol(int op) {
  switch (op) {
    case add:
      return "+";
    case subtract:
      return "-";
    case multiply:
      return "*";
    case divide:
      return "/";
    case modulo:
      return "%";
    case floor_divide:
      return "//";
    default:
      return "**";
  }
}

Int floor_quotient(Int a, Int b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// False when the result has more than 127 bits.
bool integer_power(Int base, Int exponent, Int& out) {
  out = 1;
  if (base == 0 || base == 1) return out = exponent == 0 ? 1 : base, true;
  if (base == -1) return out = exponent % 2 ? -1 : 1, true;
  for (Int i = 0; i < exponent; ++i)
    if (__builtin_mul_overflow(out, base, &out)) return false;
  return true;
}

double float_op(int op, double a, double b) {
  switch (op) {
    case add:
      return a + b;
    case subtract:
      return a - b;
    case multiply:
      return a * b;
    case divide:
      return a / b;
    case floor_divide:
      return std::floor(a / b);
    case modulo:
      return a - b * std::floor(a / b);
    default:
      return std::pow(a, b);
  }
}

Value joined(const List& a, const List& b) {
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return Value::list(std::move(items), a.tuple);
}

Value repeated(Interpreter& in, const Value& v, Int times) {
  const size_t size = v.as_str() ? v.as_str()->text.size() : v.as_list()->items.size() * 4;
  if (times < 0 || size == 0) times = 0;
  if (times > static_cast<Int>(kMaxBytes / std::max<size_t>(size, 1)))
    in.error("a repetition grows too large");
  in.spend(static_cast<size_t>(times) * (1 + size / 64));
  if (const Str* s = v.as_str()) {
    Str out;
    for (Int i = 0; i < times; ++i) append(out, *s);
    return in.string(std::move(out));
  }
  std::vector<Value> items;
  for (Int i = 0; i < times; ++i)
    items.insert(items.end(), v.as_list()->items.begin(), v.as_list()->items.end());
  return Value::list(std::move(items), v.as_list()->tuple);
}

// Python's slice.indices: the positions that from:to:step names in a sequence of n.
std::vector<size_t> positions(Interpreter& in, Int n, const Value& from, const Value& to, const Value& by) {
  const Int step = by.is_none() ? 1 : in.integer(by, "a slice");
  if (step == 0) in.error("slice step cannot be zero");
  const auto bound = [&](const Value& v, Int absent) {
    if (v.is_none()) return absent;
    Int i = in.integer(v, "a slice");
    if (i < 0) i += n;
    return std::clamp(i, step < 0 ? Int{-1} : Int{0}, step < 0 ? n - 1 : n);
  };
  const Int first = bound(from, step < 0 ? n - 1 : 0), last = bound(to, step < 0 ? -1 : n);
  std::vector<size_t> out;
  for (Int i = first; step < 0 ? i > last : i < last; i += std::clamp<Int>(step, -n - 1, n + 1))
    out.push_back(static_cast<size_t>(i));
  return out;
}

}  // namespace

Int Interpreter::integer(const Value& v, const char* what) {
  must_be_defined(v);
  Int i;
  if (!v.to_int(i)) error(std::string(what) + " needs an integer, not '" + v.type_name() + "'");
  return i;
}

Value Interpreter::binary(int op, const Value& a, const Value& b) {
  must_be_defined(a);
  must_be_defined(b);
  Int i, j;
  double x, y;
  if (a.to_int(i) && b.to_int(j) && op != divide) {
    if ((op == floor_divide || op == modulo) && j == 0) error("integer division or modulo by zero");
    if (op != power || j >= 0) {
      Int out = 0;
      const bool fits = op == add        ? !__builtin_add_overflow(i, j, &out)
                        : op == subtract ? !__builtin_sub_overflow(i, j, &out)
                        : op == multiply ? !__builtin_mul_overflow(i, j, &out)
                        : op == power    ? integer_power(i, j, out)
                                         : true;
      // The most negative number has no opposite.
      const bool divides = op == floor_divide || op == modulo;
      if (!fits || (divides && j == -1 && i == kMostNegative)) error("an integer grows too large");
      if (op == floor_divide) out = floor_quotient(i, j);
      if (op == modulo) out = i - j * floor_quotient(i, j);
      return Value::integer(out);
    }
  }
  if (a.to_double(x) && b.to_double(y)) {
    if ((op == divide || op == floor_divide || op == modulo) && y == 0) error("division by zero");
    return Value(float_op(op, x, y));
  }
  if (op == add && a.as_str() && b.as_str()) {
    Str out = *a.as_str();
    append(out, *b.as_str());
    return string(std::move(out));
  }
  if (op == add && a.as_list() && b.as_list() && a.as_list()->tuple == b.as_list()->tuple) {
    spend((a.as_list()->items.size() + b.as_list()->items.size()) / 8);
    return joined(*a.as_list(), *b.as_list());
  }
  if (op == multiply && (a.as_str() || a.as_list()) && b.to_int(j)) return repeated(*this, a, j);
  if (op == multiply && (b.as_str() || b.as_list()) && a.to_int(i)) return repeated(*this, b, i);
  if (op == add && a.as_str())
    error(std::string("can only concatenate str (not \"") + b.type_name() + "\") to str");
  error(std::string("unsupported operand type(s) for ") + symbol(op) + ": '" + a.type_name() + "' and '" +
        b.type_name() + "'");
}

bool Interpreter::less(const Value& a, const Value& b) {
  must_be_defined(a);
  must_be_defined(b);
  Int i, j;
  double x, y;
  if (a.to_int(i) && b.to_int(j)) return i < j;
  if (a.to_double(x) && b.to_double(y)) return x < y;
  if (a.as_str() && b.as_str()) return a.as_str()->text < b.as_str()->text;  // bytes order as code points do
  if (a.as_list() && b.as_list()) {
    const auto &l = a.as_list()->items, &m = b.as_list()->items;
    for (size_t k = 0; k < l.size() && k < m.size(); ++k)
      if (!equal(l[k], m[k])) return less(l[k], m[k]);
    return l.size() < m.size();
  }
  error(std::string("'<' not supported between instances of '") + a.type_name() + "' and '" + b.type_name() +
        "'");
}

bool Interpreter::compare(const std::string& op, const Value& a, const Value& b) {
  spend((a.extent().bytes + b.extent().bytes) / 1024);
  if (op == "==") return equal(a, b);
  if (op == "!=") return !equal(a, b);
  if (op == "in") return contains(b, a);
  if (op == "not in") return !contains(b, a);
  if (op == "<") return less(a, b);
  if (op == ">") return less(b, a);
  double x, y;
  if (a.to_double(x) && b.to_double(y) && (std::isnan(x) || std::isnan(y))) return false;
  return op == "<=" ? !less(b, a) : !less(a, b);
}

bool Interpreter::contains(const Value& container, const Value& item) {
  spend(container.extent().bytes / 256);
  if (container.is_undefined()) return false;
  if (const Str* s = container.as_str()) {
    if (!item.as_str()) {
      must_be_defined(item);
      error(std::string("'in <string>' requires string as left operand, not ") + item.type_name());
    }
    return s->text.find(item.as_str()->text) != std::string::npos;
  }
  if (const List* l = container.as_list())
    return std::any_of(l->items.begin(), l->items.end(), [&](const Value& v) { return equal(v, item); });
  if (const Dict* d = container.as_dict()) return d->find(item) != nullptr;
  error(std::string("argument of type '") + container.type_name() + "' is not iterable");
}

std::vector<Value> Interpreter::iterate(const Value& v) {
  std::vector<Value> out;
  if (v.is_undefined()) return out;
  if (const List* l = v.as_list()) {
    out = l->items;
  } else if (const Dict* d = v.as_dict()) {
    for (const auto& [key, value] : d->items) out.push_back(key);
  } else if (const Str* s = v.as_str()) {
    for (Str& c : characters(*s)) out.push_back(Value::str(std::move(c)));
  } else {
    error(std::string("'") + v.type_name() + "' object is not iterable");
  }
  spend(out.size() / 4);
  return out;
}

Value Interpreter::slice(const Value& object, const Value& from, const Value& to, const Value& step) {
  must_be_defined(object);
  if (const List* l = object.as_list()) {
    std::vector<Value> items;
    for (const size_t i : positions(*this, static_cast<Int>(l->items.size()), from, to, step))
      items.push_back(l->items[i]);
    spend(items.size() / 8);
    return Value::list(std::move(items), l->tuple);
  }
  if (const Str* s = object.as_str()) {
    const std::vector<Str> all = characters(*s);
    spend(all.size() / 8);
    Str out;
    for (const size_t i : positions(*this, static_cast<Int>(all.size()), from, to, step)) append(out, all[i]);
    return string(std::move(out));
  }
  error(std::string("'") + object.type_name() + "' object is not subscriptable");
}

}  // namespace qlora::jinja
