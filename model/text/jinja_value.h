#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/io/json.h"

// The values of the Jinja interpreter: Python's, as far as templates see them.
namespace qlora::jinja {

// Integers are exact to 128 bits (JSON brings 64-bit ones); what goes beyond is an error, not a rounding.
using Int = __int128;

// Where bytes [begin, end) of a string come from: message `origin` (>= 0), other data of the row, or a
// {% generation %} block. What the template itself says has no mark.
struct Mark {
  static constexpr int32_t kData = -1, kGeneration = -2;
  size_t begin, end;
  int32_t origin;
};

struct Str {
  std::string text;  // UTF-8
  std::vector<Mark> marks;
};

class Value;
struct Namespace;
struct Loop;
struct Callable;

struct Undefined {
  std::shared_ptr<const std::string> why;  // "'x' is undefined"
};
struct None {};
// How deep a value nests and about how many bytes it prints as. Containers do not change once made and may
// hold one value many times, so both are bounded when one is made; whatever walks it then ends.
struct Extent {
  int depth = 0;
  size_t bytes = 0;
};
constexpr int kMaxDepth = 200;
constexpr size_t kMaxBytes = size_t{32} << 20;

struct List {
  std::vector<Value> items;
  bool tuple = false;
  Extent extent;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  Extent extent;
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  void set(const Value& key, Value value);
};

class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, Int, double, std::shared_ptr<const Str>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                   std::shared_ptr<Loop>, std::shared_ptr<const Callable>>;
  Value() : data_(None{}) {}
  template <class T>
  explicit Value(T data) : data_(std::move(data)) {}
  static Value undefined(std::string why) {
    return Value(Undefined{std::make_shared<const std::string>(std::move(why))});
  }
  static Value str(std::string text) { return str(Str{std::move(text), {}}); }
  static Value str(Str s) { return Value(std::shared_ptr<const Str>(std::make_shared<Str>(std::move(s)))); }
  static Value integer(Int i) { return Value(i); }
  static Value boolean(bool b) { return Value(b); }
  // Refused (std::length_error) beyond kMaxDepth and kMaxBytes.
  static Value list(std::vector<Value> items, bool tuple = false);
  static Value dict(Dict d);
  // Every string in `json` is marked with `origin`. Bounded as list() is.
  static Value from_json(const Json& json, int32_t origin, int level = 0);

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  const Str* as_str() const { return pointer<const Str>(); }
  const List* as_list() const { return pointer<const List>(); }
  const Dict* as_dict() const { return pointer<const Dict>(); }
  Namespace* as_namespace() const { return pointer<Namespace>(); }
  Loop* as_loop() const { return pointer<Loop>(); }
  const Callable* as_callable() const { return pointer<const Callable>(); }
  // Integers and booleans, as in Python.
  bool to_int(Int& out) const;
  bool to_double(double& out) const;
  const Data& data() const { return data_; }

  bool truth() const;
  Extent extent() const;
  const char* type_name() const;  // Python's

 private:
  template <class T>
  T* pointer() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&data_);
    return p ? p->get() : nullptr;
  }
  Data data_;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Loop {
  size_t index0 = 0, length = 0;
  Value previous, next;
};

struct MacroStmt;
struct Scope;
// What can be called: a global function, a method with its object, a macro with the scope it was made in.
struct Callable {
  std::string name;
  std::shared_ptr<const Value> self;
  const MacroStmt* macro = nullptr;
  Scope* scope = nullptr;
};

bool equal(const Value& a, const Value& b);
std::string int_text(Int i);
std::string float_repr(double d);
// str(value) and repr(value), marks kept.
Str to_str(const Value& v);
Str repr(const Value& v);

struct JsonStyle {
  int indent = -1;  // < 0: one line
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
// json.dumps; what JSON cannot say throws std::invalid_argument with Python's message.
Str to_json(const Value& v, const JsonStyle& style);

// Strings with marks.
void append(Str& out, const Str& more);
Str substr(const Str& s, size_t begin, size_t end);  // bytes
// `text` made of all of `s` in a way that moves characters: marked as a whole if s is anywhere.
Str remade(const Str& s, std::string text);

}  // namespace qlora::jinja
