#include "model/text/jinja_parser.h"

#include <algorithm>

namespace qlora::jinja {
namespace {

using StmtPtr = std::unique_ptr<Stmt>;

class StatementParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Syntax run() {
    Syntax out;
    out.body = body({});
    out.name = name_;
    out.names = std::move(names_);
    out.has_generation = has_generation_;
    return out;
  }

 private:
  static bool is_one_of(const std::string& name, const std::vector<std::string>& names) {
    for (const std::string& n : names)
      if (n == name) return true;
    return false;
  }

  StmtPtr make(StmtKind kind) const {
    auto s = std::make_unique<Stmt>();
    s->kind = kind;
    s->line = now().line;
    return s;
  }

  // Statements up to a tag whose name is in `ends`; its name becomes the current token. Without `ends`, to
  // the end of the template.
  Body body(const std::vector<std::string>& ends) {
    const Nest nest(*this);
    Body out;
    while (!at(Tok::end)) {
      if (at(Tok::data)) {
        out.push_back(make(StmtKind::text));
        out.back()->text = std::move(tokens_[at_++].text);
      } else if (at(Tok::print_begin)) {
        out.push_back(make(StmtKind::print));
        ++at_;
        out.back()->exprs.push_back(tuple());
        need(Tok::print_end, "}}");
      } else {
        need(Tok::block_begin, "a tag");
        if (!at(Tok::name)) unexpected("the name of a tag");
        if (is_one_of(now().text, ends)) return out;
        out.push_back(statement(ends));
        need(Tok::block_end, "%}");
      }
    }
    if (!ends.empty()) bad("the template ends where {% " + ends.back() + " %} is wanted");
    return out;
  }

  Body body_to(const std::string& end) {
    need(Tok::block_end, "%}");
    Body out = body({end});
    ++at_;
    return out;
  }

  StmtPtr statement(const std::vector<std::string>& ends) {
    StmtPtr s = make(StmtKind::choice);
    const std::string tag = need_name();
    if (tag == "if") return choice(std::move(s));
    if (tag == "for") return loop(std::move(s));
    if (tag == "set") return set(std::move(s));
    if (tag == "macro") return macro(std::move(s));
    if (tag == "filter") {
      s->kind = StmtKind::filter_block;
      s->exprs.push_back(filters_only());
      s->bodies.push_back(body_to("endfilter"));
      return s;
    }
    if (tag == "generation") {
      s->kind = StmtKind::generation;
      has_generation_ = true;
      s->bodies.push_back(outside_loops("endgeneration"));
      return s;
    }
    if (tag == "with") return with(std::move(s));
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) bad("{% " + tag + " %} outside of a loop");
      s->kind = tag == "break" ? StmtKind::loop_break : StmtKind::loop_continue;
      return s;
    }
    if (tag.starts_with("end") || tag == "else" || tag == "elif")
      bad("{% " + tag + " %} without its beginning" +
          (ends.empty() ? "" : "; {% " + ends.back() + " %} is wanted"));
    bad("tag '" + tag + "' is not supported; rewrite the template without it");
  }

  // Break and continue do not reach out of these.
  Body outside_loops(const std::string& end) {
    const int loops = std::exchange(loops_, 0);
    Body out = body_to(end);
    loops_ = loops;
    return out;
  }

  StmtPtr choice(StmtPtr s) {
    for (;;) {
      s->exprs.push_back(tuple(false));
      need(Tok::block_end, "%}");
      s->bodies.push_back(body({"elif", "else", "endif"}));
      const std::string tag = need_name();
      if (tag == "elif") continue;
      if (tag == "else") s->bodies.push_back(body_to("endif"));
      return s;
    }
  }

  Target one_target() {
    Target t;
    if (take_op("(")) {
      t = target();
      need_op(")");
      return t;
    }
    t.name = need_name();
    for (const char* word : {"true", "false", "none", "True", "False", "None", "loop"})
      if (t.name == word) bad("cannot assign to '" + t.name + "'");
    t.id = intern(t.name);
    if (take_op(".")) t.attribute = need_name();
    return t;
  }

  Target target() {
    const Nest nest(*this);
    Target first = one_target();
    if (!at_op(",")) return first;
    Target out;
    out.parts.push_back(std::move(first));
    while (take_op(",")) {
      if (!at(Tok::name) && !at_op("(")) break;
      out.parts.push_back(one_target());
    }
    return out;
  }

  StmtPtr loop(StmtPtr s) {
    s->kind = StmtKind::loop;
    s->target = target();
    if (!take_name("in")) unexpected("'in'");
    s->exprs.push_back(tuple(false));
    s->exprs.push_back(take_name("if") ? expression() : nullptr);
    if (at_name("recursive")) bad("recursive loops are not supported; use a macro");
    need(Tok::block_end, "%}");
    ++loops_;
    s->bodies.push_back(body({"else", "endfor"}));
    --loops_;
    if (need_name() == "else") s->bodies.push_back(body_to("endfor"));
    return s;
  }

  StmtPtr set(StmtPtr s) {
    s->target = target();
    if (take_op("=")) {
      s->kind = StmtKind::set;
      s->exprs.push_back(tuple());
      return s;
    }
    s->kind = StmtKind::set_block;
    s->exprs.push_back(take_op("|") ? filters_only() : nullptr);
    s->bodies.push_back(body_to("endset"));
    return s;
  }

  StmtPtr macro(StmtPtr s) {
    s->kind = StmtKind::macro;
    s->macro = std::make_unique<MacroStmt>();
    MacroStmt& m = *s->macro;
    m.name = need_name();
    m.id = intern(m.name);
    need_op("(");
    while (!at_op(")")) {
      m.parameter_names.push_back(need_name());
      m.parameters.push_back(intern(m.parameter_names.back()));
      if (take_op("="))
        m.defaults.push_back(expression());
      else if (!m.defaults.empty())
        bad("a parameter without a default follows one with a default");
      if (!take_op(",")) break;
    }
    need_op(")");
    m.body = outside_loops("endmacro");
    return s;
  }

  StmtPtr with(StmtPtr s) {
    s->kind = StmtKind::with;
    while (!at(Tok::block_end)) {
      s->ids.push_back(intern(need_name()));
      need_op("=");
      s->exprs.push_back(expression());
      if (!take_op(",")) break;
    }
    s->bodies.push_back(body_to("endwith"));
    return s;
  }

  int loops_ = 0;
  bool has_generation_ = false;
};

}  // namespace

TemplateError::TemplateError(const std::string& name, int line, const std::string& message, bool raised)
    : Error(Category::input,
            [&] {
              std::string one = cat(name, ": line ", line, ": ", message);
              std::replace(one.begin(), one.end(), '\n', ' ');
              return one;
            }()),
      line_(line),
      message_(message),
      raised_(raised) {}

Syntax parse(std::string_view source, const std::string& name) {
  return StatementParser(tokenize(source, name), name).run();
}

}  // namespace qlora::jinja
