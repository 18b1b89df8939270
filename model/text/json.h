#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace qlora {

// JSON whose keys keep their order: templates print objects as they are written.
using OrderedJson = nlohmann::ordered_json;

// Parses a small JSON file. Category::input, opening with `where`, for what is no JSON, for a key that comes
// twice in an object, beyond 200 levels and beyond 20,000 keys in an object.
OrderedJson parse_json(std::string_view text, const std::string& where);

}  // namespace qlora
