#include "model/io/json.h"

#include <cmath>
#include <set>

#include "memory/file.h"

namespace qlora {
namespace {

// Watches the parse: depth, and the keys of each open object.
class Strict {
 public:
  Strict(const std::string& where, int max_depth) : where_(where), max_depth_(max_depth) {}
  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= max_depth_)
        fail(Category::input, where_, ": JSON nested deeper than ", max_depth_,
             " levels; no such file is read");
    }
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key && !keys_.back().insert(parsed.get_ref<const std::string&>()).second)
      fail(Category::input, where_, ": the JSON key ", shown(parsed),
           " stands twice in one object; keep one");
    if (event == Event::key && keys_.back().size() > kJsonKeys)
      fail(Category::input, where_, ": a JSON object of more than ", kJsonKeys,
           " keys; no such file is read");
    return true;
  }

 private:
  const std::string& where_;
  int max_depth_;
  std::vector<std::set<std::string>> keys_;
};

// "[json.exception.parse_error.101] parse error at line 1, column 5: ..." without the library's tag.
std::string plain(const std::string& what) {
  const size_t end = what.find("] ");
  return what.front() == '[' && end != std::string::npos ? what.substr(end + 2) : what;
}

const Json* find(const Json& obj, const std::string& where, const char* key) {
  if (!obj.is_object()) fail(Category::input, where, ": is no JSON object; check that it is the right file");
  const auto it = obj.find(key);
  return it == obj.end() || it->is_null() ? nullptr : &*it;
}

[[noreturn]] void wrong(const std::string& where, const char* key, const Json& value, std::string_view want) {
  fail(Category::input, where, ": ", key, " is ", shown(value), " where ", want,
       " belongs; correct the file");
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, int max_depth) {
  try {
    return Json::parse(text.begin(), text.end(), Strict(where, max_depth));
  } catch (const nlohmann::json::exception& e) {
    fail(Category::input, where, ": no valid JSON: ", plain(e.what()), "; restore or correct the file");
  }
}

Json read_json(const std::string& path, size_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

std::optional<int64_t> json_int(const Json& obj, const std::string& where, const char* key, int64_t low,
                                int64_t high) {
  const Json* value = find(obj, where, key);
  if (value == nullptr) return std::nullopt;
  const std::string want = cat("an integer from ", low, " to ", high);
  if (!value->is_number_integer()) wrong(where, key, *value, want);
  if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    wrong(where, key, *value, want);
  const int64_t i = value->get<int64_t>();
  if (i < low || i > high) wrong(where, key, *value, want);
  return i;
}

std::optional<double> json_number(const Json& obj, const std::string& where, const char* key) {
  const Json* value = find(obj, where, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>())) wrong(where, key, *value, "a number");
  return value->get<double>();
}

std::optional<bool> json_bool(const Json& obj, const std::string& where, const char* key) {
  const Json* value = find(obj, where, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong(where, key, *value, "true or false");
  return value->get<bool>();
}

std::optional<std::string> json_string(const Json& obj, const std::string& where, const char* key) {
  const Json* value = find(obj, where, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong(where, key, *value, "a string");
  return value->get<std::string>();
}

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

std::string shown_text(std::string_view text) { return shown(Json(std::string(text))); }

}  // namespace qlora
