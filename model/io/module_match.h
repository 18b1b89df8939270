#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory/error.h"
#include "model/desc.h"

namespace qlora {

// A regular expression over module names (PCRE2, bounded in steps, memory and nesting: adapters come from
// strangers). Compiling a broken one is Category `on_error`, naming `where`.
class ModuleRegex {
 public:
  ModuleRegex(const std::string& pattern, const std::string& where, Category on_error);
  ~ModuleRegex();
  ModuleRegex(ModuleRegex&& o) noexcept
      : code_(std::exchange(o.code_, nullptr)),
        pattern_(std::move(o.pattern_)),
        where_(std::move(o.where_)),
        on_error_(o.on_error_) {}
  ModuleRegex& operator=(ModuleRegex&&) = delete;
  bool full_match(const std::string& name) const;  // Python's re.fullmatch

 private:
  void* code_ = nullptr;
  std::string pattern_, where_;
  Category on_error_;
};

// The linears that adapters sit on, as PEFT's target_modules says it: names, each of which matches a module
// of that name or one that ends in ".NAME"; or one regular expression that must match the whole name.
struct ModuleTargets {
  std::vector<std::string> names;
  std::string regex;  // used when names is empty

  // --target-modules: "all-linear" (every linear of the blocks, not the head), a comma list of names, or,
  // where any of \ ( ) [ ] { } * + ? | ^ $ stands in it, one regular expression. Category::usage when an
  // entry matches no linear of the model, listing the names that there are.
  static ModuleTargets parse(const std::string& option, const ModelDesc& desc);
};

struct ModuleRef {
  int block;
  LinearKind kind;
  std::string name;  // "model.layers.3.self_attn.q_proj"
};
// Every linear of the blocks, in the order of the forward pass.
std::vector<ModuleRef> all_linears(const ModelDesc& desc);
// Those that the targets match. Empty when none does.
std::vector<ModuleRef> matching_linears(const ModuleTargets& targets, const ModelDesc& desc,
                                        const std::string& where);
bool matches_suffix(const std::string& name, const std::string& suffix);

}  // namespace qlora
