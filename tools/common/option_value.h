#pragma once
// Values as text, read strictly: the whole text counts, ranges are checked, no locale.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/common/options.h"

namespace qlora::tools {

std::optional<int64_t> parse_integer(std::string_view text);
// Finite decimal numbers; no hex, inf or nan.
std::optional<double> parse_real(std::string_view text);
// true|false|yes|no|on|off, without case.
std::optional<bool> parse_bool(std::string_view text);
// Bytes: a plain number, or one with B, kB, MB, GB, TB (powers of 10) or KiB, MiB, GiB, TiB (powers of 2),
// without case; fractions are rounded down. A bare G is neither and no size.
std::optional<uint64_t> parse_bytes(std::string_view text);

struct DeviceName {
  enum class Which { automatic, cpu, cuda } which = Which::automatic;
  int index = 0;  // of the CUDA device
};
std::optional<DeviceName> parse_device(std::string_view text);

std::vector<std::string> split_words(std::string_view text);  // at commas, blanks around a word dropped
bool equal_without_case(std::string_view a, std::string_view b);
bool valid_utf8(std::string_view text);

// The value as it is kept (booleans as true|false, choices in their own spelling), or an error that starts
// with `origin`. Rules for single values (Option::rules) were applied before, except in lists, where they are
// applied here.
std::string canonical_value(const Option& option, std::string_view text, const std::string& origin);

// What a value of the option looks like: "4|8|16|keep", "N", "BYTES", …
std::string value_name(const Option& option);

}  // namespace qlora::tools
