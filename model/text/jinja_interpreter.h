#pragma once
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/text/jinja_syntax.h"

namespace qlora::jinja {

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;
  bool kept = false;  // a macro was made inside, which may be called after the scope's end
};

// Renders a parsed template once. A template can neither run nor grow without end: steps, string sizes,
// container extents and the depth of calls are bounded. Failures are TemplateErrors with the line.
class Interpreter {
 public:
  Interpreter(const Syntax& syntax, const std::optional<std::tm>& now) : syntax_(syntax), now_(now) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;

  // A variable of the template; one that the template never names is dropped.
  void define(const std::string& name, Value value);
  Str run();

  // For operators, filters, tests and methods.
  [[noreturn]] void error(const std::string& message) const;
  void spend(size_t steps);
  Value string(Str s);
  Value string(std::string s) { return string(Str{std::move(s), {}}); }
  Str to_string(const Value& v);
  std::vector<Value> iterate(const Value& v);
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);
  Value slice(const Value& object, const Value& from, const Value& to, const Value& step);
  Value binary(int op, const Value& a, const Value& b);
  bool compare(const std::string& op, const Value& a, const Value& b);
  bool less(const Value& a, const Value& b);
  bool contains(const Value& container, const Value& item);
  Int integer(const Value& v, const char* what);
  Value filter(int which, const Value& input, Args& args);
  bool test(int which, const Value& v, Args& args);
  Value call(const Value& callee, Args& args);
  void must_be_defined(const Value& v);

 private:
  enum class Flow { go_on, leave_loop, next_turn };
  class ScopeGuard;
  class DepthGuard;

  Flow run_body(const Body& body);
  Flow run_stmt(const Stmt& s);
  Flow run_choice(const Stmt& s);
  Flow run_loop(const Stmt& s);
  void run_set_block(const Stmt& s);
  void run_generation(const Stmt& s);
  void run_with(const Stmt& s);
  void make_macro(const Stmt& s);
  Str captured(const Body& body);
  void print(const Value& v);
  void assign(const Target& target, const Value& value);
  void set(int id, Value value);
  Value lookup(int id);

  Value eval(const Expr& e);
  Value eval_node(const Expr& e);
  Value eval_container(const Expr& e);
  Value eval_call(const Expr& e);
  Value eval_filter(const Expr& e, const Value* input);
  Value eval_test(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_choice(const Expr& e);
  Value eval_slice(const Expr& e);
  Value negated(const Value& v, bool minus);
  Args arguments(const Expr& e, size_t first);
  Value call_macro(const Callable& macro, Args& args);
  Value call_function(const std::string& name, Args& args);
  Value call_method(const Callable& method, Args& args);
  Value loop_attribute(const Loop& loop, const std::string& name) const;
  Value strftime_now(const std::string& format);
  Value make_namespace(Args& args);
  Value range(Args& args);

  const Syntax& syntax_;
  const std::optional<std::tm>& now_;
  Scope root_;
  Scope* scope_ = &root_;
  std::vector<std::unique_ptr<Scope>> scopes_;  // in use and kept ones
  std::vector<Scope*> free_scopes_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;  // emptied at the end: they may hold each other
  Str* out_ = nullptr;
  int line_ = 1;
  int depth_ = 0;
  size_t steps_ = 0;
};

// Arguments of a filter or method: by position, or by name where Python allows it.
const Value* argument(const Args& args, size_t position, const char* name);
// Whether Python has such a method on the object.
bool has_method(const Value& object, const std::string& name);

// Pieces that filters and methods share.
Str strip(const Str& s, const std::string* characters, bool left, bool right);
std::vector<Str> split_lines(const Str& s);
std::vector<Str> characters(const Str& s);
Str replaced(Interpreter& in, const Str& s, const std::string& from, const Str& to, Int count);
Str capitalized(const Str& s);

}  // namespace qlora::jinja
