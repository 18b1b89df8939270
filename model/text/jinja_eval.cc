#include <cmath>
#include <ctime>

#include "model/text/jinja_interpreter.h"
#include "model/text/unicode.h"

// Expressions.
namespace qlora::jinja {

namespace {
constexpr int kEvalDepth = 400;
}

Value Interpreter::eval(const Expr& e) {
  line_ = e.line;
  spend(1);
  switch (e.kind) {
    case ExprKind::constant:
      return e.value;
    case ExprKind::name:
      return lookup(e.id);
    default:
      break;
  }
  if (++depth_ > kEvalDepth) {
    --depth_;
    error("the template nests or calls itself too deeply");
  }
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } leave{depth_};
  return eval_node(e);
}

Value Interpreter::eval_node(const Expr& e) {
  switch (e.kind) {
    case ExprKind::attribute:
      return attribute(eval(*e.args[0]), e.text);
    case ExprKind::item: {
      const Value object = eval(*e.args[0]);
      return item(object, eval(*e.args[1]));
    }
    case ExprKind::slice:
      return eval_slice(e);
    case ExprKind::call:
      return eval_call(e);
    case ExprKind::filter:
      return eval_filter(e, nullptr);
    case ExprKind::test:
      return eval_test(e);
    case ExprKind::op_not:
      return Value::boolean(!eval(*e.args[0]).truth());
    case ExprKind::op_and: {
      Value left = eval(*e.args[0]);
      return left.truth() ? eval(*e.args[1]) : left;
    }
    case ExprKind::op_or: {
      Value left = eval(*e.args[0]);
      return left.truth() ? left : eval(*e.args[1]);
    }
    case ExprKind::negate:
      return negated(eval(*e.args[0]), true);
    case ExprKind::plus:
      return negated(eval(*e.args[0]), false);
    case ExprKind::binary: {
      const Value left = eval(*e.args[0]);
      const Value right = eval(*e.args[1]);
      // "//" and "**" differ from their halves by the second character.
      return binary(e.text[0] + (e.text.size() > 1 ? 256 : 0), left, right);
    }
    case ExprKind::compare:
      return eval_compare(e);
    case ExprKind::concat:
      return eval_concat(e);
    case ExprKind::choice:
      return eval_choice(e);
    default:
      return eval_container(e);
  }
}

Value Interpreter::eval_container(const Expr& e) {
  if (e.kind == ExprKind::dict) {
    Dict d;
    for (size_t i = 0; i + 1 < e.args.size(); i += 2) {
      const Value key = eval(*e.args[i]);
      if (key.as_list() || key.as_dict()) error(std::string("unhashable type: '") + key.type_name() + "'");
      d.set(key, eval(*e.args[i + 1]));
    }
    return Value::dict(std::move(d));
  }
  std::vector<Value> items;
  for (const ExprPtr& arg : e.args) items.push_back(eval(*arg));
  return Value::list(std::move(items), e.kind == ExprKind::tuple);
}

Value Interpreter::eval_slice(const Expr& e) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i)
    if (e.args[i]) parts[i] = eval(*e.args[i]);
  return slice(parts[0], parts[1], parts[2], parts[3]);
}

Args Interpreter::arguments(const Expr& e, size_t first) {
  Args out;
  for (size_t i = first; i < e.args.size(); ++i) out.positional.push_back(eval(*e.args[i]));
  for (const auto& [name, value] : e.kwargs) out.named.emplace_back(name, eval(*value));
  return out;
}

Value Interpreter::eval_call(const Expr& e) {
  const Value callee = eval(*e.args[0]);
  Args args = arguments(e, 1);
  line_ = e.line;
  return call(callee, args);
}

Value Interpreter::eval_filter(const Expr& e, const Value* input) {
  const Value in =
      e.args[0] ? e.args[0]->kind == ExprKind::filter ? eval_filter(*e.args[0], input) : eval(*e.args[0])
                : *input;
  Args args = arguments(e, 1);
  line_ = e.line;
  spend(1);
  return filter(e.which, in, args);
}

Value Interpreter::eval_test(const Expr& e) {
  const Value v = eval(*e.args[0]);
  Args args = arguments(e, 1);
  return Value::boolean(test(e.which, v, args));
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.args[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    Value right = eval(*e.args[i + 1]);
    if (!compare(e.ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_concat(const Expr& e) {
  Str out;
  for (const ExprPtr& arg : e.args) append(out, to_string(eval(*arg)));
  return string(std::move(out));
}

Value Interpreter::eval_choice(const Expr& e) {
  if (eval(*e.args[0]).truth()) return eval(*e.args[1]);
  if (e.args[2]) return eval(*e.args[2]);
  return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
}

Value Interpreter::negated(const Value& v, bool minus) {
  must_be_defined(v);
  Int i;
  double d;
  if (v.to_int(i)) return minus ? binary('-', Value::integer(0), v) : Value::integer(i);
  if (v.to_double(d)) return Value(minus ? -d : d);
  error(std::string("bad operand type for unary ") + (minus ? "-" : "+") + ": '" + v.type_name() + "'");
}

Value Interpreter::call(const Value& callee, Args& args) {
  must_be_defined(callee);
  const Callable* c = callee.as_callable();
  if (!c) error(std::string("'") + callee.type_name() + "' object is not callable");
  spend(1);
  if (c->macro) return call_macro(*c, args);
  if (c->self) return call_method(*c, args);
  return call_function(c->name, args);
}

Value Interpreter::call_function(const std::string& name, Args& args) {
  if (name == "namespace") return make_namespace(args);
  if (name == "range") return range(args);
  if (name == "dict") {
    Dict d;
    if (!args.positional.empty()) {
      if (!args.positional[0].as_dict())
        error("dict() is supported with keyword arguments and of a dict only");
      d = *args.positional[0].as_dict();
      d.extent = {};
    }
    for (auto& [key, v] : args.named) d.set(Value::str(key), v);
    return Value::dict(std::move(d));
  }
  if (args.positional.empty()) error(name + "() needs an argument");
  const std::string text = to_string(args.positional[0]).text;
  if (name == "raise_exception") throw TemplateError(syntax_.name, line_, text, true);
  return strftime_now(text);
}

Value Interpreter::make_namespace(Args& args) {
  auto space = std::make_shared<Namespace>();
  namespaces_.push_back(space);
  spend(4);
  if (!args.positional.empty()) {
    const Dict* d = args.positional[0].as_dict();
    if (!d) error("namespace() takes keyword arguments or a dict");
    for (const auto& [key, v] : d->items) space->attributes.emplace_back(to_string(key).text, v);
  }
  for (auto& row : args.named) space->attributes.push_back(row);
  return Value(std::move(space));
}

Value Interpreter::range(Args& args) {
  constexpr Int kLargest = 100'000;  // the reference's sandbox has the same
  if (args.positional.empty() || args.positional.size() > 3) error("range expected 1 to 3 arguments");
  Int from = 0, to = integer(args.positional[0], "range()"), step = 1;
  if (args.positional.size() > 1) from = to, to = integer(args.positional[1], "range()");
  if (args.positional.size() > 2) step = integer(args.positional[2], "range()");
  if (step == 0) error("range() arg 3 must not be zero");
  for (const Int v : {from, to, step})
    if (v > INT64_MAX || v < INT64_MIN) error("range() arguments are too large");
  const Int span = step > 0 ? to - from : from - to, stride = step > 0 ? step : -step;
  const Int count = span <= 0 ? 0 : (span + stride - 1) / stride;
  if (count > kLargest) error("range() is longer than 100000");
  spend(static_cast<size_t>(count));
  std::vector<Value> items;
  for (Int i = 0; i < count; ++i) items.push_back(Value::integer(from + i * step));
  return Value::list(std::move(items));
}

Value Interpreter::strftime_now(const std::string& format) {
  if (format.empty()) return Value::str("");
  if (format.size() > 4096) error("strftime_now: the format is too long");
  std::tm when{};
  if (now_) {
    when = *now_;
  } else {
    const std::time_t t = std::time(nullptr);
    localtime_r(&t, &when);
  }
  // A format may give nothing, so a character is put behind it to tell that from too small a buffer.
  std::string out(format.size() * 32 + 256, '\0');
  out.resize(std::strftime(out.data(), out.size(), (format + "|").c_str(), &when));
  if (out.empty()) error("strftime_now: the format '" + format + "' cannot be used");
  out.pop_back();
  return string(std::move(out));
}

Value Interpreter::loop_attribute(const Loop& loop, const std::string& name) const {
  const auto number = [](size_t n) { return Value::integer(static_cast<Int>(n)); };
  if (name == "index") return number(loop.index0 + 1);
  if (name == "index0") return number(loop.index0);
  if (name == "revindex") return number(loop.length - loop.index0);
  if (name == "revindex0") return number(loop.length - loop.index0 - 1);
  if (name == "first") return Value::boolean(loop.index0 == 0);
  if (name == "last") return Value::boolean(loop.index0 + 1 == loop.length);
  if (name == "length") return number(loop.length);
  if (name == "depth") return number(1);  // deeper only in recursive loops
  if (name == "depth0") return number(0);
  if (name == "previtem") return loop.previous;
  if (name == "nextitem") return loop.next;
  if (name == "cycle" || name == "changed") error("loop." + name + " is not supported");
  return Value::undefined("'loop' has no attribute '" + name + "'");
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  must_be_defined(object);
  if (const Loop* loop = object.as_loop()) return loop_attribute(*loop, name);
  if (const Namespace* space = object.as_namespace()) {
    for (const auto& [n, v] : space->attributes)
      if (n == name) return v;
    return Value::undefined("'namespace' has no attribute '" + name + "'");
  }
  if (has_method(object, name)) {
    const Callable method{name, std::make_shared<const Value>(object)};
    return Value(std::shared_ptr<const Callable>(std::make_shared<Callable>(method)));
  }
  if (const Dict* d = object.as_dict()) {
    spend(d->items.size() / 8);
    if (const Value* v = d->find(name)) return *v;
  }
  return Value::undefined(std::string("'") + (object.is_none() ? "None" : object.type_name()) +
                          (object.is_none() ? "" : " object") + "' has no attribute '" + name + "'");
}

Value Interpreter::item(const Value& object, const Value& key) {
  must_be_defined(object);
  if (const Dict* d = object.as_dict()) {
    spend(d->items.size() / 8);
    if (const Value* v = d->find(key)) return *v;
  }
  if (const Str* name = key.as_str()) return attribute(object, name->text);
  Int i;
  const bool is_index = key.to_int(i);
  const auto missing = [&] {
    return Value::undefined(std::string("'") + object.type_name() + " object' has no element " +
                            repr(key).text);
  };
  if (const List* l = object.as_list(); l && is_index) {
    const Int n = static_cast<Int>(l->items.size());
    if (i < 0) i += n;
    return i < 0 || i >= n ? missing() : l->items[static_cast<size_t>(i)];
  }
  if (const Str* s = object.as_str(); s && is_index) {
    const std::vector<Str> all = characters(*s);
    spend(all.size() / 8);
    const Int n = static_cast<Int>(all.size());
    if (i < 0) i += n;
    return i < 0 || i >= n ? missing() : Value::str(all[static_cast<size_t>(i)]);
  }
  return missing();
}

}  // namespace qlora::jinja
