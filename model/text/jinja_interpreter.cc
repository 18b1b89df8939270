#include "model/text/jinja_interpreter.h"

#include <stdexcept>

namespace qlora::jinja {
namespace {

constexpr size_t kSteps = 4'000'000;
constexpr int kCalls = 300;  // statements, expressions and macros inside each other
constexpr size_t kBytesAStep = 256;

}  // namespace

class Interpreter::DepthGuard {
 public:
  explicit DepthGuard(Interpreter& in) : in_(in) {
    if (++in_.depth_ > kCalls) {
      --in_.depth_;
      in_.error("the template nests or calls itself too deeply");
    }
  }
  ~DepthGuard() { --in_.depth_; }

 private:
  Interpreter& in_;
};

class Interpreter::ScopeGuard {
 public:
  ScopeGuard(Interpreter& in, Scope* parent) : in_(in), before_(in.scope_) {
    if (in_.free_scopes_.empty()) {
      in_.scopes_.push_back(std::make_unique<Scope>());
      in_.free_scopes_.push_back(in_.scopes_.back().get());
    }
    scope_ = in_.free_scopes_.back();
    in_.free_scopes_.pop_back();
    scope_->parent = parent;
    in_.scope_ = scope_;
  }
  ~ScopeGuard() {
    in_.scope_ = before_;
    if (scope_->kept) return;
    scope_->variables.clear();
    in_.free_scopes_.push_back(scope_);
  }
  // What the scope is for the next turn of a loop.
  void renew() {
    if (!scope_->kept) return scope_->variables.clear();
    Scope* parent = scope_->parent;
    in_.scopes_.push_back(std::make_unique<Scope>());
    scope_ = in_.scope_ = in_.scopes_.back().get();
    scope_->parent = parent;
  }

 private:
  Interpreter& in_;
  Scope* before_;
  Scope* scope_;
};

Interpreter::~Interpreter() {
  for (const auto& n : namespaces_) n->attributes.clear();
}

void Interpreter::error(const std::string& message) const {
  throw TemplateError(syntax_.name, line_, message);
}

void Interpreter::spend(size_t steps) {
  steps_ += steps;
  if (steps_ > kSteps) error("the template takes too many steps");
}

Value Interpreter::string(Str s) {
  if (s.text.size() > kMaxBytes) error("a string grows too large");
  spend(s.text.size() / kBytesAStep + s.marks.size() / 16);
  return Value::str(std::move(s));
}

Str Interpreter::to_string(const Value& v) {
  spend(v.extent().bytes / kBytesAStep);
  return to_str(v);
}

void Interpreter::must_be_defined(const Value& v) {
  if (const auto* u = std::get_if<Undefined>(&v.data())) error(u->why ? *u->why : "a value is undefined");
}

void Interpreter::define(const std::string& name, Value value) {
  for (size_t id = 0; id < syntax_.names.size(); ++id)
    if (syntax_.names[id] == name) {
      scope_ = &root_;
      set(static_cast<int>(id), std::move(value));
    }
}

Str Interpreter::run() {
  Str out;
  out_ = &out;
  try {
    run_body(syntax_.body);
  } catch (const std::length_error& e) {
    error(e.what());
  } catch (const std::invalid_argument& e) {
    error(e.what());
  }
  return out;
}

void Interpreter::set(int id, Value value) {
  for (auto& [name, v] : scope_->variables)
    if (name == id) {
      v = std::move(value);
      return;
    }
  scope_->variables.emplace_back(id, std::move(value));
}

Value Interpreter::lookup(int id) {
  for (const Scope* s = scope_; s; s = s->parent)
    for (const auto& [name, v] : s->variables)
      if (name == id) return v;
  const std::string& name = syntax_.names[static_cast<size_t>(id)];
  for (const char* function : {"raise_exception", "strftime_now", "namespace", "range", "dict"})
    if (name == function)
      return Value(std::shared_ptr<const Callable>(std::make_shared<Callable>(Callable{name, nullptr})));
  return Value::undefined("'" + name + "' is undefined");
}

void Interpreter::print(const Value& v) {
  const Str s = to_string(v);
  if (out_->text.size() + s.text.size() > kMaxBytes) error("the output grows too large");
  spend(s.text.size() / kBytesAStep);
  append(*out_, s);
}

Str Interpreter::captured(const Body& body) {
  Str text;
  Str* before = std::exchange(out_, &text);
  try {
    run_body(body);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

Interpreter::Flow Interpreter::run_body(const Body& body) {
  const DepthGuard depth(*this);
  for (const auto& s : body)
    if (const Flow flow = run_stmt(*s); flow != Flow::go_on) return flow;
  return Flow::go_on;
}

Interpreter::Flow Interpreter::run_stmt(const Stmt& s) {
  line_ = s.line;
  spend(1);
  switch (s.kind) {
    case StmtKind::text:
      out_->text += s.text;
      break;
    case StmtKind::print:
      print(eval(*s.exprs[0]));
      break;
    case StmtKind::choice:
      return run_choice(s);
    case StmtKind::loop:
      return run_loop(s);
    case StmtKind::set:
      assign(s.target, eval(*s.exprs[0]));
      break;
    case StmtKind::set_block:
      run_set_block(s);
      break;
    case StmtKind::macro:
      make_macro(s);
      break;
    case StmtKind::filter_block: {
      const ScopeGuard scope(*this, scope_);
      const Value text = string(captured(s.bodies[0]));
      print(eval_filter(*s.exprs[0], &text));
      break;
    }
    case StmtKind::generation:
      run_generation(s);
      break;
    case StmtKind::with:
      run_with(s);
      break;
    case StmtKind::loop_break:
      return Flow::leave_loop;
    case StmtKind::loop_continue:
      return Flow::next_turn;
  }
  if (out_->text.size() > kMaxBytes) error("the output grows too large");
  return Flow::go_on;
}

Interpreter::Flow Interpreter::run_choice(const Stmt& s) {
  for (size_t i = 0; i < s.exprs.size(); ++i)
    if (eval(*s.exprs[i]).truth()) return run_body(s.bodies[i]);
  return s.bodies.size() > s.exprs.size() ? run_body(s.bodies.back()) : Flow::go_on;
}

Interpreter::Flow Interpreter::run_loop(const Stmt& s) {
  std::vector<Value> items = iterate(eval(*s.exprs[0]));
  ScopeGuard scope(*this, scope_);
  if (s.exprs[1]) {
    std::vector<Value> kept;
    for (Value& v : items) {
      scope.renew();
      assign(s.target, v);
      if (eval(*s.exprs[1]).truth()) kept.push_back(std::move(v));
    }
    items.swap(kept);
  }
  if (items.empty()) {
    scope.renew();
    return s.bodies.size() > 1 ? run_body(s.bodies[1]) : Flow::go_on;
  }
  // A template that never says `loop` has no name for it.
  int loop_id = -1;
  for (size_t id = 0; id < syntax_.names.size(); ++id)
    if (syntax_.names[id] == "loop") loop_id = static_cast<int>(id);
  const auto loop = std::make_shared<Loop>();
  loop->length = items.size();
  for (size_t i = 0; i < items.size(); ++i) {
    scope.renew();
    loop->index0 = i;
    loop->previous = i ? items[i - 1] : Value::undefined("there is no previous item");
    loop->next = i + 1 < items.size() ? items[i + 1] : Value::undefined("there is no next item");
    if (loop_id >= 0) set(loop_id, Value(loop));
    assign(s.target, items[i]);
    if (run_body(s.bodies[0]) == Flow::leave_loop) break;
    spend(1);
  }
  return Flow::go_on;
}

void Interpreter::run_set_block(const Stmt& s) {
  Value text;
  {
    const ScopeGuard scope(*this, scope_);
    text = string(captured(s.bodies[0]));
    if (s.exprs[0]) text = eval_filter(*s.exprs[0], &text);
  }
  assign(s.target, text);
}

void Interpreter::run_generation(const Stmt& s) {
  const ScopeGuard scope(*this, scope_);
  const size_t begin = out_->text.size();
  run_body(s.bodies[0]);
  out_->marks.push_back({begin, out_->text.size(), Mark::kGeneration});
}

void Interpreter::run_with(const Stmt& s) {
  std::vector<Value> values;
  for (const ExprPtr& e : s.exprs) values.push_back(eval(*e));
  const ScopeGuard scope(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) set(s.ids[i], values[i]);
  run_body(s.bodies[0]);
}

void Interpreter::make_macro(const Stmt& s) {
  spend(16);  // the scopes around it stay
  for (Scope* scope = scope_; scope; scope = scope->parent) scope->kept = true;
  const Callable macro{s.macro->name, nullptr, s.macro.get(), scope_};
  set(s.macro->id, Value(std::shared_ptr<const Callable>(std::make_shared<Callable>(macro))));
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.parts.empty()) {
    const std::vector<Value> items = iterate(value);
    if (items.size() != target.parts.size())
      error((items.size() < target.parts.size() ? "not enough" : "too many") +
            std::string(" values to unpack, wanted ") + std::to_string(target.parts.size()));
    for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
    return;
  }
  if (target.attribute.empty()) return set(target.id, value);
  const Value object = lookup(target.id);
  Namespace* space = object.as_namespace();
  if (!space) error("cannot assign attribute on non-namespace object '" + target.name + "'");
  spend(space->attributes.size() / 8);
  for (auto& [name, v] : space->attributes)
    if (name == target.attribute) {
      v = value;
      return;
    }
  space->attributes.emplace_back(target.attribute, value);
}

Value Interpreter::call_macro(const Callable& callable, Args& args) {
  const MacroStmt& m = *callable.macro;
  const size_t count = m.parameters.size(), required = count - m.defaults.size();
  if (args.positional.size() > count)
    error("macro '" + m.name + "' takes not more than " + std::to_string(count) + " argument(s)");
  for (const auto& [name, v] : args.named) {
    bool known = false;
    for (size_t i = args.positional.size(); i < count; ++i) known |= m.parameter_names[i] == name;
    if (!known) error("macro '" + m.name + "' takes no keyword argument '" + name + "'");
  }
  const int line = line_;
  const ScopeGuard scope(*this, callable.scope);
  for (size_t i = 0; i < count; ++i) {
    const std::string& name = m.parameter_names[i];
    if (const Value* given = argument(args, i, name.c_str()))
      set(m.parameters[i], *given);
    else if (i >= required)
      set(m.parameters[i], eval(*m.defaults[i - required]));
    else
      set(m.parameters[i], Value::undefined("parameter '" + name + "' was not provided"));
  }
  Str text = captured(m.body);
  line_ = line;
  return string(std::move(text));
}

const Value* argument(const Args& args, size_t position, const char* name) {
  if (position < args.positional.size()) return &args.positional[position];
  for (const auto& [n, v] : args.named)
    if (n == name) return &v;
  return nullptr;
}

}  // namespace qlora::jinja
