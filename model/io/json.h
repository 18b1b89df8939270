#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "memory/error.h"

namespace qlora {

// Keys keep the order in which they were read or set.
using Json = nlohmann::ordered_json;

inline constexpr int kJsonDepth = 64;
inline constexpr size_t kJsonKeys = 20'000;  // of one object: finding a key takes time linear in their number
inline constexpr size_t kSmallJsonBytes = size_t{64} << 20;  // a config or index is never larger

// RFC 8259, strictly: nlohmann's own parser takes any depth and the last of duplicate keys; here both are
// refused, as is bad UTF-8. Category::input, naming `where` and the place.
Json parse_json(std::string_view text, const std::string& where, int max_depth = kJsonDepth);
// read_file + parse_json.
Json read_json(const std::string& path, size_t max_bytes = kSmallJsonBytes);

// obj[key] with its type and range checked: nullopt when the key is absent or null; Category::input, naming
// `where` and the key, when it is something else. `obj` must be an object.
std::optional<int64_t> json_int(const Json& obj, const std::string& where, const char* key, int64_t low,
                                int64_t high);
std::optional<double> json_number(const Json& obj, const std::string& where, const char* key);
std::optional<bool> json_bool(const Json& obj, const std::string& where, const char* key);
std::optional<std::string> json_string(const Json& obj, const std::string& where, const char* key);

// Printed for a message: at most 60 characters of its JSON.
std::string shown(const Json& value);
// A name or other text of a file, quoted and escaped, so that a message stays one line.
std::string shown_text(std::string_view text);

}  // namespace qlora
