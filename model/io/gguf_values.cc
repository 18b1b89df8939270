#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory/error.h"
#include "model/io/gguf.h"
#include "model/io/json.h"

namespace qlora {
namespace {

template <class T>
T load(const MappedFile& file, uint64_t& at) {
  T value;
  std::memcpy(&value, file.data() + at, sizeof(T));
  at += sizeof(T);
  return value;
}

std::string load_string(const MappedFile& file, uint64_t& at) {
  const auto n = load<uint64_t>(file, at);
  std::string text(file.text().substr(at, n));
  at += n;
  return text;
}

const char* type_name(GgufType t) {
  static constexpr const char* names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                          "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<size_t>(t)];
}

}  // namespace

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> out;
  out.reserve(values_.size());
  for (const auto& [key, value] : values_) out.push_back(key);
  std::sort(out.begin(), out.end());
  return out;
}

const GgufFile::Value* GgufFile::find_value(const std::string& key, bool array) const {
  const auto it = values_.find(key);
  if (it == values_.end()) return nullptr;
  if (it->second.array != array) wrong_type(key, array ? "an array" : "a single value");
  return &it->second;
}

void GgufFile::wrong_type(const std::string& key, const char* want) const {
  const Value& v = values_.at(key);
  fail(Category::input, path(), ": byte ", v.at, ": key ", key, " is ", v.array ? "an array of " : "of type ",
       type_name(v.type), " where ", want, " belongs; convert the model again");
}

// Advances `at`; nullopt when the type is no integer or past int64.
std::optional<int64_t> GgufFile::integer_at(const Value& v, uint64_t& at) const {
  switch (v.type) {
    case GgufType::u8:
      return load<uint8_t>(file_, at);
    case GgufType::i8:
      return load<int8_t>(file_, at);
    case GgufType::u16:
      return load<uint16_t>(file_, at);
    case GgufType::i16:
      return load<int16_t>(file_, at);
    case GgufType::u32:
      return load<uint32_t>(file_, at);
    case GgufType::i32:
      return load<int32_t>(file_, at);
    case GgufType::i64:
      return load<int64_t>(file_, at);
    case GgufType::u64: {
      const auto u = load<uint64_t>(file_, at);
      if (u > uint64_t{INT64_MAX}) return std::nullopt;
      return static_cast<int64_t>(u);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> GgufFile::number_at(const Value& v, uint64_t& at) const {
  std::optional<double> out;
  if (v.type == GgufType::f32)
    out = load<float>(file_, at);
  else if (v.type == GgufType::f64)
    out = load<double>(file_, at);
  else if (const auto i = integer_at(v, at))
    out = static_cast<double>(*i);
  if (out && !std::isfinite(*out)) out.reset();
  return out;
}

std::optional<int64_t> GgufFile::integer(const std::string& key, int64_t low, int64_t high) const {
  const Value* v = find_value(key, false);
  if (v == nullptr) return std::nullopt;
  uint64_t at = v->at;
  const auto i = integer_at(*v, at);
  if (!i) wrong_type(key, "an integer");
  if (*i < low || *i > high)
    fail(Category::input, path(), ": key ", key, " is ", *i, " where ", low, " to ", high,
         " is possible; convert the model again");
  return i;
}

std::optional<double> GgufFile::number(const std::string& key) const {
  const Value* v = find_value(key, false);
  if (v == nullptr) return std::nullopt;
  uint64_t at = v->at;
  const auto n = number_at(*v, at);
  if (!n) wrong_type(key, "a finite number");
  return n;
}

std::optional<bool> GgufFile::boolean(const std::string& key) const {
  const Value* v = find_value(key, false);
  if (v == nullptr) return std::nullopt;
  if (v->type != GgufType::boolean) wrong_type(key, "true or false");
  uint64_t at = v->at;
  return load<uint8_t>(file_, at) != 0;
}

std::optional<std::string> GgufFile::string(const std::string& key) const {
  const Value* v = find_value(key, false);
  if (v == nullptr) return std::nullopt;
  if (v->type != GgufType::string) wrong_type(key, "a string");
  uint64_t at = v->at;
  return load_string(file_, at);
}

std::optional<std::vector<std::string>> GgufFile::strings(const std::string& key) const {
  const Value* v = find_value(key, true);
  if (v == nullptr) return std::nullopt;
  if (v->type != GgufType::string) wrong_type(key, "an array of strings");
  std::vector<std::string> out(v->count);
  uint64_t at = v->at;
  for (std::string& s : out) s = load_string(file_, at);
  return out;
}

std::optional<std::vector<int64_t>> GgufFile::integers(const std::string& key) const {
  const Value* v = find_value(key, true);
  if (v == nullptr) return std::nullopt;
  std::vector<int64_t> out(v->count);
  uint64_t at = v->at;
  for (int64_t& i : out) {
    const auto read = integer_at(*v, at);
    if (!read) wrong_type(key, "an array of integers");
    i = *read;
  }
  return out;
}

std::optional<std::vector<float>> GgufFile::floats(const std::string& key) const {
  const Value* v = find_value(key, true);
  if (v == nullptr) return std::nullopt;
  std::vector<float> out(v->count);
  uint64_t at = v->at;
  for (float& f : out) {
    const auto read = number_at(*v, at);
    if (!read) wrong_type(key, "an array of finite numbers");
    f = static_cast<float>(*read);
  }
  return out;
}

std::string GgufFile::shown_value(const std::string& key) const {
  const Value& v = values_.at(key);
  if (v.array) return cat("[", v.count, " ", type_name(v.type), "]");
  if (v.type == GgufType::string) return shown(Json(*string(key)));
  if (v.type == GgufType::boolean) return *boolean(key) ? "true" : "false";
  uint64_t at = v.at;
  if (const auto i = integer_at(v, at)) return std::to_string(*i);
  at = v.at;
  if (const auto n = number_at(v, at)) return cat(*n);
  return "not finite";
}

}  // namespace qlora
