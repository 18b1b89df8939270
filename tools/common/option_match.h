#pragma once
// From a name as somebody typed it to what the table says about it.
#include <string>
#include <string_view>

#include "tools/common/options.h"

namespace qlora::tools {

struct Match {
  const Option* option = nullptr;
  const Alias* alias = nullptr;      // the peer's name that was used
  const Refusal* refusal = nullptr;  // then option is null
  bool negated = false;              // `no-NAME`
};

// `name` with dashes and without the leading two. An option or alias, else its `no-` form where it has one,
// else what the table refuses by name; all null when the name is unknown.
Match match_name(const Table& table, std::string_view name);

// The rule for a value: the alias's before the option's own; null when the value stands for itself. For lists
// with choices the option's rules are for single entries and are not looked at.
const ValueRule* find_rule(const Match& match, std::string_view value);

// True when a value need not follow; it is then bare_value.
bool stands_alone(const Match& match);
std::string bare_value(const Match& match);
// Whether the word behind an option that stands alone is its value.
bool is_value_of(const Match& match, std::string_view word);

// Throws a usage error that names the nearest option. `what` is "option" or "key".
[[noreturn]] void unknown_name(const Table& table, std::string_view name, const std::string& origin,
                               const char* what);

}  // namespace qlora::tools
