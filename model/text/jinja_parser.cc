#include "model/text/jinja_parser.h"

#include <algorithm>
#include <charconv>

namespace qlora::jinja {
namespace {

constexpr int kNesting = 100;  // of the source
constexpr int kDepth = 250;    // of a tree, which chains of operators deepen too

}  // namespace

ExpressionParser::Nest::Nest(ExpressionParser& p) : p_(p) {
  if (++p.nesting_ > kNesting) p.bad("the template nests too deeply");
}

void ExpressionParser::unexpected(const std::string& wanted) const {
  const Token& t = now();
  const bool tag_end = t.kind == Tok::block_end || t.kind == Tok::print_end;
  bad("wanted " + wanted + ", found " +
      (t.kind == Tok::end ? "the end of the template"
       : tag_end          ? "the end of the tag"
                          : "'" + t.text + "'"));
}

int ExpressionParser::intern(const std::string& name) {
  const auto [place, fresh] = ids_.emplace(name, static_cast<int>(names_.size()));
  if (fresh) names_.push_back(name);
  return place->second;
}

ExprPtr ExpressionParser::make(ExprKind kind, std::string text) const {
  auto e = std::make_unique<Expr>();
  e->kind = kind;
  e->line = now().line;
  e->text = std::move(text);
  return e;
}

ExprPtr ExpressionParser::join(ExprPtr parent, ExprPtr child) {
  if (child) {
    parent->depth = std::max(parent->depth, child->depth + 1);
    if (parent->depth > kDepth) bad("the expression is too long");
  }
  parent->args.push_back(std::move(child));
  return parent;
}

ExprPtr ExpressionParser::tuple(bool choices) {
  const auto item = [&] { return choices ? expression() : disjunction(); };
  const auto ends = [&] {
    return at(Tok::block_end) || at(Tok::print_end) || at_op(")") || at_op("]") || at_op("}") ||
           at_name("in") || at(Tok::end);
  };
  ExprPtr first = item();
  if (!at_op(",")) return first;
  ExprPtr out = join(make(ExprKind::tuple), std::move(first));
  while (take_op(",")) {
    if (ends()) break;
    out = join(std::move(out), item());
  }
  return out;
}

ExprPtr ExpressionParser::choice() {
  const Nest nest(*this);
  ExprPtr value = disjunction();
  while (take_name("if")) {
    ExprPtr out = make(ExprKind::choice);
    out = join(std::move(out), disjunction());
    out = join(std::move(out), std::move(value));
    out = join(std::move(out), take_name("else") ? choice() : nullptr);
    value = std::move(out);
  }
  return value;
}

ExprPtr ExpressionParser::disjunction() {
  ExprPtr left = conjunction();
  while (take_name("or")) {
    left = join(make(ExprKind::op_or), std::move(left));
    left = join(std::move(left), conjunction());
  }
  return left;
}

ExprPtr ExpressionParser::conjunction() {
  ExprPtr left = negation();
  while (take_name("and")) {
    left = join(make(ExprKind::op_and), std::move(left));
    left = join(std::move(left), negation());
  }
  return left;
}

ExprPtr ExpressionParser::negation() {
  const Nest nest(*this);
  if (take_name("not")) return join(make(ExprKind::op_not), negation());
  return comparison();
}

ExprPtr ExpressionParser::comparison() {
  ExprPtr left = sum();
  std::vector<std::string> ops;
  ExprPtr out;
  const auto more = [&]() -> std::string {
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">"})
      if (take_op(op)) return op;
    if (take_name("in")) return "in";
    if (at_name("not") && tokens_[at_ + 1].kind == Tok::name && tokens_[at_ + 1].text == "in")
      return at_ += 2, "not in";
    return "";
  };
  for (std::string op; !(op = more()).empty();) {
    if (!out) out = join(make(ExprKind::compare), std::move(left));
    out->ops.push_back(op);
    out = join(std::move(out), sum());
  }
  return out ? std::move(out) : std::move(left);
}

ExprPtr ExpressionParser::sum() {
  ExprPtr left = concatenation();
  while (at_op("+") || at_op("-")) {
    ExprPtr out = make(ExprKind::binary, tokens_[at_++].text);
    out = join(std::move(out), std::move(left));
    left = join(std::move(out), concatenation());
  }
  return left;
}

ExprPtr ExpressionParser::concatenation() {
  ExprPtr left = product();
  if (!at_op("~")) return left;
  left = join(make(ExprKind::concat), std::move(left));
  while (take_op("~")) left = join(std::move(left), product());
  return left;
}

ExprPtr ExpressionParser::product() {
  ExprPtr left = power();
  while (at_op("*") || at_op("/") || at_op("//") || at_op("%")) {
    ExprPtr out = make(ExprKind::binary, tokens_[at_++].text);
    out = join(std::move(out), std::move(left));
    left = join(std::move(out), power());
  }
  return left;
}

ExprPtr ExpressionParser::power() {
  ExprPtr left = unary();
  while (at_op("**")) {
    ExprPtr out = make(ExprKind::binary, tokens_[at_++].text);
    out = join(std::move(out), std::move(left));
    left = join(std::move(out), unary());
  }
  return left;
}

ExprPtr ExpressionParser::unary(bool with_filters) {
  const Nest nest(*this);
  ExprPtr node;
  if (at_op("-") || at_op("+")) {
    const ExprKind kind = at_op("-") ? ExprKind::negate : ExprKind::plus;
    ++at_;
    node = join(make(kind), unary(false));
  } else {
    node = primary();
  }
  node = postfix(std::move(node));
  return with_filters ? filters(std::move(node)) : std::move(node);
}

ExprPtr ExpressionParser::primary() {
  if (at(Tok::name)) return name_or_constant();
  if (at(Tok::integer) || at(Tok::real)) return number();
  if (at(Tok::string)) {
    ExprPtr e = make(ExprKind::constant);
    std::string text;
    while (at(Tok::string)) text += tokens_[at_++].text;
    e->value = Value::str(std::move(text));
    return e;
  }
  if (at_op("(")) return parenthesized();
  if (at_op("[")) return list_literal();
  if (at_op("{")) return dict_literal();
  unexpected("a value");
}

ExprPtr ExpressionParser::name_or_constant() {
  ExprPtr e = make(ExprKind::constant);
  const std::string name = need_name();
  if (name == "true" || name == "True") {
    e->value = Value::boolean(true);
  } else if (name == "false" || name == "False") {
    e->value = Value::boolean(false);
  } else if (name != "none" && name != "None") {
    e->kind = ExprKind::name;
    e->id = intern(name);
    e->text = name;
  }
  return e;
}

ExprPtr ExpressionParser::number() {
  ExprPtr e = make(ExprKind::constant);
  const std::string text = now().text;
  if (at(Tok::real)) {
    double d = 0;
    std::from_chars(text.data(), text.data() + text.size(), d);
    e->value = Value(d);
  } else {
    const bool based = text.size() > 2 && text[0] == '0' && text[1] > '9';
    const char kind = based ? static_cast<char>(text[1] | 0x20) : 'd';
    const int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    int64_t value = 0;
    const auto [end, error] =
        std::from_chars(text.data() + (based ? 2 : 0), text.data() + text.size(), value, base);
    if (error != std::errc() || end != text.data() + text.size()) bad("the number " + text + " is too large");
    e->value = Value::integer(value);
  }
  ++at_;
  return e;
}

ExprPtr ExpressionParser::parenthesized() {
  const Nest nest(*this);
  need_op("(");
  if (take_op(")")) return make(ExprKind::tuple);
  ExprPtr out = tuple();
  need_op(")");
  return out;
}

ExprPtr ExpressionParser::list_literal() {
  const Nest nest(*this);
  ExprPtr out = make(ExprKind::list);
  need_op("[");
  while (!at_op("]")) {
    out = join(std::move(out), expression());
    if (!take_op(",")) break;
  }
  need_op("]");
  return out;
}

ExprPtr ExpressionParser::dict_literal() {
  const Nest nest(*this);
  ExprPtr out = make(ExprKind::dict);
  need_op("{");
  while (!at_op("}")) {
    out = join(std::move(out), expression());
    need_op(":");
    out = join(std::move(out), expression());
    if (!take_op(",")) break;
  }
  need_op("}");
  return out;
}

ExprPtr ExpressionParser::postfix(ExprPtr node) {
  for (;;) {
    if (at_op(".")) {
      node = dotted(std::move(node));
    } else if (at_op("[")) {
      node = subscript(std::move(node));
    } else if (at_op("(")) {
      node = join(make(ExprKind::call), std::move(node));
      call_arguments(*node);
    } else {
      return node;
    }
  }
}

ExprPtr ExpressionParser::dotted(ExprPtr node) {
  need_op(".");
  if (at(Tok::integer)) {
    ExprPtr out = join(make(ExprKind::item), std::move(node));
    return join(std::move(out), number());
  }
  ExprPtr out = make(ExprKind::attribute);
  out->text = need_name();
  return join(std::move(out), std::move(node));
}

ExprPtr ExpressionParser::subscript(ExprPtr node) {
  const Nest nest(*this);
  ExprPtr out = make(ExprKind::item);
  need_op("[");
  ExprPtr parts[3];
  int colons = 0;
  while (!at_op("]")) {
    if (take_op(":")) {
      if (++colons > 2) unexpected("']'");
    } else if (!parts[colons]) {
      parts[colons] = colons ? expression() : tuple();
    } else {
      unexpected("']'");
    }
  }
  if (colons == 0 && !parts[0]) unexpected("an index");
  need_op("]");
  out = join(std::move(out), std::move(node));
  if (colons == 0) return join(std::move(out), std::move(parts[0]));
  out->kind = ExprKind::slice;
  for (ExprPtr& part : parts) out = join(std::move(out), std::move(part));
  return out;
}

void ExpressionParser::call_arguments(Expr& call) {
  const Nest nest(*this);
  need_op("(");
  while (!at_op(")")) {
    ExprPtr value;
    std::string name;
    if (at(Tok::name) && tokens_[at_ + 1].kind == Tok::op && tokens_[at_ + 1].text == "=") {
      name = need_name();
      ++at_;
    } else if (!call.kwargs.empty()) {
      bad("an argument without a name follows one with a name");
    }
    value = expression();
    call.depth = std::max(call.depth, value->depth + 1);
    if (call.depth > kDepth) bad("the expression is too long");
    if (name.empty())
      call.args.push_back(std::move(value));
    else
      call.kwargs.emplace_back(name, std::move(value));
    if (!take_op(",")) break;
  }
  need_op(")");
}

ExprPtr ExpressionParser::filters(ExprPtr node) {
  for (;;) {
    if (at_op("|"))
      node = filter(std::move(node));
    else if (at_name("is"))
      node = test(std::move(node));
    else if (at_op("("))
      node = postfix(std::move(node));
    else
      return node;
  }
}

ExprPtr ExpressionParser::filter(ExprPtr input) {
  need_op("|");
  ExprPtr out = make(ExprKind::filter);
  out->text = need_name();
  out->which = find_filter(out->text);
  if (out->which < 0) bad("no filter named '" + out->text + "'");
  out = join(std::move(out), std::move(input));
  if (at_op("(")) call_arguments(*out);
  return out;
}

ExprPtr ExpressionParser::filters_only() {
  ExprPtr out;
  // The first filter has no bar before it; filter() wants one.
  tokens_.insert(tokens_.begin() + static_cast<ptrdiff_t>(at_), Token{Tok::op, now().line, "|"});
  while (at_op("|")) out = filter(std::move(out));
  return out;
}

ExprPtr ExpressionParser::test(ExprPtr node) {
  const Nest nest(*this);
  ++at_;
  const bool negated = take_name("not");
  ExprPtr out = make(ExprKind::test);
  out->text = need_name();
  out->which = find_test(out->text);
  if (out->which < 0) bad("no test named '" + out->text + "'");
  out = join(std::move(out), std::move(node));
  if (at_op("(")) {
    call_arguments(*out);
  } else if ((at(Tok::name) && !at_name("else") && !at_name("or") && !at_name("and") && !at_name("if") &&
              !at_name("is")) ||
             at(Tok::string) || at(Tok::integer) || at(Tok::real) || at_op("[") || at_op("{")) {
    out = join(std::move(out), postfix(primary()));
  }
  return negated ? join(make(ExprKind::op_not), std::move(out)) : std::move(out);
}

}  // namespace qlora::jinja
