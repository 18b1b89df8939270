#include "tools/common/option_match.h"

#include "memory/error.h"
#include "tools/common/nearest.h"
#include "tools/common/option_value.h"

namespace qlora::tools {
namespace {

const ValueRule* rule_of(const std::vector<ValueRule>& rules, std::string_view value) {
  for (const ValueRule& rule : rules)
    if (rule.from == "*" || equal_without_case(rule.from, value)) return &rule;
  return nullptr;
}

bool can_be_negated(const Match& match) {
  if (match.alias && !match.alias->values.empty()) return rule_of(match.alias->values, "false") != nullptr;
  return match.option->kind == Kind::toggle || rule_of(match.option->rules, "false") != nullptr;
}

Match match_positive(const Table& table, std::string_view name) {
  for (const Option& option : table.options) {
    if (option.name == name) return {&option};
    for (const Alias& alias : option.aliases)
      if (with_dashes(alias.name) == name) return {&option, &alias};
  }
  return {};
}

const Refusal* match_refusal(const Table& table, std::string_view name) {
  for (const Refusal& refusal : table.refusals) {
    const std::string wanted = with_dashes(refusal.name);
    if (wanted == name) return &refusal;
    if (wanted.back() == '*' &&
        name.substr(0, wanted.size() - 1) == std::string_view(wanted).substr(0, wanted.size() - 1))
      return &refusal;
  }
  return nullptr;
}

}  // namespace

Match match_name(const Table& table, std::string_view name) {
  Match match = match_positive(table, name);
  if (match.option) return match;
  const bool no = name.substr(0, 3) == "no-";
  if (no) {
    match = match_positive(table, name.substr(3));
    if (match.option && can_be_negated(match)) {
      match.negated = true;
      return match;
    }
  }
  match = {};
  match.refusal = match_refusal(table, name);
  if (!match.refusal && no) {
    match.refusal = match_refusal(table, name.substr(3));
    match.negated = match.refusal != nullptr;
  }
  return match;
}

const ValueRule* find_rule(const Match& match, std::string_view value) {
  if (match.alias)
    if (const ValueRule* rule = rule_of(match.alias->values, value)) return rule;
  const bool by_entry = match.option->kind == Kind::words && !match.option->choices.empty();
  return by_entry ? nullptr : rule_of(match.option->rules, value);
}

bool stands_alone(const Match& match) {
  if (match.alias && match.alias->toggle) return true;
  return match.option->kind == Kind::toggle || !match.option->bare.empty();
}

std::string bare_value(const Match& match) {
  return match.option->bare.empty() || (match.alias && match.alias->toggle) ? "true" : match.option->bare;
}

bool is_value_of(const Match& match, std::string_view word) {
  if (match.option->kind == Kind::toggle || (match.alias && match.alias->toggle))
    return equal_without_case(word, "true") || equal_without_case(word, "false");
  for (const std::string& choice : match.option->choices)
    if (equal_without_case(word, choice)) return true;
  return rule_of(match.option->rules, word) != nullptr;
}

void unknown_name(const Table& table, std::string_view name, const std::string& origin, const char* what) {
  std::vector<std::string> names;
  for (const Option& option : table.options) {
    names.push_back(option.name);
    for (const Alias& alias : option.aliases) names.push_back(with_dashes(alias.name));
    if (option.kind == Kind::toggle) names.push_back("no-" + option.name);
  }
  const bool key = std::string_view(what) == "key";
  const std::string best = nearest(name, names);
  fail(Category::usage, key ? origin + ": " : "", "unknown ", what, key ? "" : " " + origin, ", nearest is ",
       key ? with_underscores(best) : "--" + best, "; --help lists all");
}

}  // namespace qlora::tools
