#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "model/text/jinja_syntax.h"

namespace qlora::jinja {

// Reads expressions from tokens; the statements are StatementParser's.
class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, std::string name)
      : tokens_(std::move(tokens)), name_(std::move(name)) {}

  // With commas a tuple. `choices`: whether `a if b else c` may stand in it.
  ExprPtr tuple(bool choices = true);
  ExprPtr expression() { return choice(); }
  // {% filter a | b(c) %} and {% set x | a %}: filters over null.
  ExprPtr filters_only();

 protected:
  [[noreturn]] void bad(const std::string& message) const { throw TemplateError(name_, now().line, message); }
  [[noreturn]] void unexpected(const std::string& wanted) const;
  const Token& now() const { return tokens_[at_]; }
  bool at(Tok kind) const { return now().kind == kind; }
  bool at_op(std::string_view op) const { return at(Tok::op) && now().text == op; }
  bool at_name(std::string_view name) const { return at(Tok::name) && now().text == name; }
  bool take_op(std::string_view op) { return at_op(op) && (++at_, true); }
  bool take_name(std::string_view name) { return at_name(name) && (++at_, true); }
  void need_op(std::string_view op) {
    if (!take_op(op)) unexpected("'" + std::string(op) + "'");
  }
  std::string need_name() {
    if (!at(Tok::name)) unexpected("a name");
    return tokens_[at_++].text;
  }
  void need(Tok kind, const char* what) {
    if (!at(kind)) unexpected(what);
    ++at_;
  }
  int intern(const std::string& name);

  // Counts how deep the parser is, so that no template overruns the stack.
  struct Nest {
    explicit Nest(ExpressionParser& p);
    ~Nest() { --p_.nesting_; }
    ExpressionParser& p_;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  std::string name_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, int> ids_;
  int nesting_ = 0;

 private:
  ExprPtr make(ExprKind kind, std::string text = {}) const;
  ExprPtr join(ExprPtr parent, ExprPtr child);
  ExprPtr choice();
  ExprPtr disjunction();
  ExprPtr conjunction();
  ExprPtr negation();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filters = true);
  ExprPtr primary();
  ExprPtr name_or_constant();
  ExprPtr number();
  ExprPtr postfix(ExprPtr node);
  ExprPtr subscript(ExprPtr node);
  ExprPtr dotted(ExprPtr node);
  ExprPtr filters(ExprPtr node);
  ExprPtr filter(ExprPtr input);
  ExprPtr test(ExprPtr node);
  ExprPtr list_literal();
  ExprPtr dict_literal();
  ExprPtr parenthesized();
  void call_arguments(Expr& call);
};

}  // namespace qlora::jinja
