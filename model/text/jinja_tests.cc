#include <algorithm>

#include "model/text/jinja_interpreter.h"
#include "model/text/unicode.h"

// What may stand after `is`.
namespace qlora::jinja {
namespace {

using Test = bool (*)(Interpreter&, const Value&, Args&);
struct Entry {
  const char* name;
  Test test;
};

const Value& other(Interpreter& in, const Args& args) {
  if (args.positional.empty()) in.error("the test needs an argument");
  return args.positional[0];
}

template <int remainder>
bool parity(Interpreter& in, const Value& v, Args&) {
  return in.integer(v, "odd/even") % 2 != 0 ? remainder == 1 : remainder == 0;
}

bool divisible(Interpreter& in, const Value& v, Args& args) {
  const Int by = in.integer(other(in, args), "divisibleby");
  if (by == 0) in.error("integer division or modulo by zero");
  return by == -1 || in.integer(v, "divisibleby") % by == 0;
}

template <char op>
bool compares(Interpreter& in, const Value& v, Args& args) {
  switch (op) {
    case '=':
      return in.compare("==", v, other(in, args));
    case '!':
      return in.compare("!=", v, other(in, args));
    case '<':
      return in.compare("<", v, other(in, args));
    case '>':
      return in.compare(">", v, other(in, args));
    case 'l':
      return in.compare("<=", v, other(in, args));
    case 'g':
      return in.compare(">=", v, other(in, args));
    default:
      return in.compare("in", v, other(in, args));
  }
}

bool is_same(Interpreter& in, const Value& v, Args& args) {
  const Value& o = other(in, args);
  return v.data().index() == o.data().index() && equal(v, o);
}

template <std::string (*convert)(std::string_view)>
bool cased(Interpreter& in, const Value& v, Args&) {
  const std::string text = in.to_string(v).text;
  return convert(text) == text && unicode::lower(text) != unicode::upper(text);
}

bool is_sequence(const Value& v) { return v.as_str() || v.as_list() || v.as_dict() || v.is_undefined(); }

constexpr Entry kTests[] = {
    {"defined", [](Interpreter&, const Value& v, Args&) { return !v.is_undefined(); }},
    {"undefined", [](Interpreter&, const Value& v, Args&) { return v.is_undefined(); }},
    {"none", [](Interpreter&, const Value& v, Args&) { return v.is_none(); }},
    {"iterable", [](Interpreter&, const Value& v, Args&) { return is_sequence(v); }},
    {"sequence", [](Interpreter&, const Value& v, Args&) { return is_sequence(v); }},
    {"string", [](Interpreter&, const Value& v, Args&) { return v.as_str() != nullptr; }},
    {"mapping", [](Interpreter&, const Value& v, Args&) { return v.as_dict() != nullptr; }},
    {"boolean", [](Interpreter&, const Value& v, Args&) { return v.is<bool>(); }},
    {"true", [](Interpreter&, const Value& v, Args&) { return v.is<bool>() && v.truth(); }},
    {"false", [](Interpreter&, const Value& v, Args&) { return v.is<bool>() && !v.truth(); }},
    {"integer", [](Interpreter&, const Value& v, Args&) { return v.is<Int>(); }},
    {"float", [](Interpreter&, const Value& v, Args&) { return v.is<double>(); }},
    {"number",
     [](Interpreter&, const Value& v, Args&) { return v.is<Int>() || v.is<double>() || v.is<bool>(); }},
    {"callable", [](Interpreter&, const Value& v, Args&) { return v.as_callable() != nullptr; }},
    {"odd", parity<1>},
    {"even", parity<0>},
    {"divisibleby", divisible},
    {"eq", compares<'='>},
    {"equalto", compares<'='>},
    {"==", compares<'='>},
    {"ne", compares<'!'>},
    {"!=", compares<'!'>},
    {"lt", compares<'<'>},
    {"lessthan", compares<'<'>},
    {"<", compares<'<'>},
    {"gt", compares<'>'>},
    {"greaterthan", compares<'>'>},
    {">", compares<'>'>},
    {"le", compares<'l'>},
    {"<=", compares<'l'>},
    {"ge", compares<'g'>},
    {">=", compares<'g'>},
    {"in", compares<'i'>},
    {"sameas", is_same},
    {"lower", cased<unicode::lower>},
    {"upper", cased<unicode::upper>},
    {"filter", [](Interpreter& in, const Value& v, Args&) { return find_filter(in.to_string(v).text) >= 0; }},
    {"test", [](Interpreter& in, const Value& v, Args&) { return find_test(in.to_string(v).text) >= 0; }}};

}  // namespace

int find_test(std::string_view name) {
  for (size_t i = 0; i < std::size(kTests); ++i)
    if (name == kTests[i].name) return static_cast<int>(i);
  return -1;
}

bool Interpreter::test(int which, const Value& v, Args& args) { return kTests[which].test(*this, v, args); }

}  // namespace qlora::jinja
