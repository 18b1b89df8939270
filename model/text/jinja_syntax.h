#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memory/error.h"
#include "model/text/jinja_value.h"

// What a template is parsed into. Syntax follows Jinja 3.1 with trim_blocks, lstrip_blocks, loop controls and
// transformers' {% generation %}; a tag, filter or test that is not known is an error when parsing.
namespace qlora::jinja {

// A template that cannot be parsed, or that fails while rendering. what() is "NAME: line N: message".
class TemplateError : public Error {
 public:
  TemplateError(const std::string& name, int line, const std::string& message, bool raised = false);
  int line() const { return line_; }
  // The template's own words where raise_exception was called.
  const std::string& message() const { return message_; }
  bool raised() const { return raised_; }

 private:
  int line_;
  std::string message_;
  bool raised_;
};

enum class Tok { data, block_begin, block_end, print_begin, print_end, name, string, integer, real, op, end };

struct Token {
  Tok kind;
  int line;
  std::string text;
};

std::vector<Token> tokenize(std::string_view source, const std::string& name);

enum class ExprKind {
  constant,
  name,       // id
  list,       // args
  tuple,      // args
  dict,       // args: key, value, key, value …
  attribute,  // args[0].text
  item,       // args[0][args[1]]
  slice,      // args[0][args[1]:args[2]:args[3]], absent ones null
  call,       // args[0](args[1…], kwargs)
  filter,     // args[0] | text(args[1…], kwargs); args[0] is null in a filter block
  test,       // args[0] is text(args[1…])
  op_not,
  op_and,
  op_or,
  negate,
  plus,
  binary,   // args[0] text args[1]
  compare,  // args[0] ops[0] args[1] ops[1] args[2] …
  concat,   // args joined as strings
  choice    // args[1] if args[0] else args[2] (may be null)
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;
struct Expr {
  ExprKind kind;
  int line;
  int id = -1;    // of a name
  int which = 0;  // of a filter, test or binary operator, in its table
  std::string text;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> kwargs;
  std::vector<std::string> ops;
  int depth = 1;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

// What an assignment writes to: names (one, or as many as the value has items), or an attribute of a
// namespace.
struct Target {
  std::vector<Target> parts;  // of a tuple
  int id = -1;
  std::string name, attribute;
};

enum class StmtKind {
  text,
  print,         // expr
  choice,        // bodies[i] if exprs[i], else the last body where there is one more
  loop,          // target, exprs: iterable, condition (may be null); bodies: body, else
  set,           // target = exprs[0]
  set_block,     // target = body, through the filters of exprs[0] (may be null)
  macro,         // macro
  filter_block,  // body through exprs[0]
  generation,    // body
  with,          // ids = exprs, body
  loop_break,
  loop_continue
};

struct MacroStmt {
  std::string name;
  int id = -1;
  std::vector<int> parameters;
  std::vector<std::string> parameter_names;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Body body;
};

struct Stmt {
  StmtKind kind;
  int line;
  std::string text;
  Target target;
  std::vector<ExprPtr> exprs;
  std::vector<Body> bodies;
  std::vector<int> ids;
  std::unique_ptr<MacroStmt> macro;
};

struct Syntax {
  std::string name;
  Body body;
  std::vector<std::string> names;  // by id
  bool has_generation = false;
};

Syntax parse(std::string_view source, const std::string& name);

// Positions in the tables of jinja_filters.cc and jinja_tests.cc, -1 when not there.
int find_filter(std::string_view name);
int find_test(std::string_view name);

}  // namespace qlora::jinja
