#include "tests/support/golden_tensors.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "memory/dtype.h"

namespace golden {

std::string path(const std::string& relative) { return std::string(QLORA_GOLDEN) + "/" + relative; }

Tensors::Tensors(const std::string& relative) : path_(path(relative)) {
  std::ifstream in(path_, std::ios::binary);
  if (!in) throw std::runtime_error("no golden file " + path_);
  file_.assign(std::istreambuf_iterator<char>(in), {});
  uint64_t length = 0;
  if (file_.size() < 8) throw std::runtime_error(path_ + " is truncated");
  std::memcpy(&length, file_.data(), 8);
  if (length > file_.size() - 8) throw std::runtime_error(path_ + " is truncated");
  const auto header = nlohmann::json::parse(file_.substr(8, length));
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      metadata_ = value.get<std::map<std::string, std::string>>();
      continue;
    }
    Entry e;
    e.dtype = value.at("dtype").get<std::string>();
    e.shape = value.at("shape").get<std::vector<int64_t>>();
    e.count = 1;
    for (int64_t d : e.shape) e.count *= d;
    e.begin = 8 + length + value.at("data_offsets").at(0).get<size_t>();
    e.end = 8 + length + value.at("data_offsets").at(1).get<size_t>();
    if (e.begin > e.end || e.end > file_.size())
      throw std::runtime_error(path_ + ": " + key + " lies outside");
    entries_.emplace(key, std::move(e));
  }
}

std::vector<std::string> Tensors::keys() const {
  std::vector<std::string> out;
  for (const auto& [key, entry] : entries_) out.push_back(key);
  return out;
}

const Tensors::Entry& Tensors::at(const std::string& key) const {
  const auto it = entries_.find(key);
  if (it == entries_.end()) throw std::runtime_error(path_ + " has no tensor " + key);
  return it->second;
}

const uint8_t* Tensors::bytes(const std::string& key) const {
  return reinterpret_cast<const uint8_t*>(file_.data()) + at(key).begin;
}

template <class T>
std::vector<T> Tensors::copy(const std::string& key, const char* dtype) const {
  const Entry& e = at(key);
  const size_t size = static_cast<size_t>(e.count) * sizeof(T);
  if (e.dtype != dtype || e.end - e.begin != size)
    throw std::runtime_error(path_ + ": " + key + " is " + e.dtype + ", not " + dtype);
  std::vector<T> out(static_cast<size_t>(e.count));
  if (size > 0) std::memcpy(out.data(), file_.data() + e.begin, size);
  return out;
}

std::vector<float> Tensors::f32(const std::string& key) const {
  const std::string& type = dtype(key);
  if (type == "F32") return copy<float>(key, "F32");
  std::vector<float> out;
  if (type == "BF16")
    for (qlora::bf16 v : copy<qlora::bf16>(key, "BF16")) out.push_back(static_cast<float>(v));
  else
    for (qlora::f16 v : copy<qlora::f16>(key, "F16")) out.push_back(static_cast<float>(v));
  return out;
}

std::vector<double> Tensors::f64(const std::string& key) const {
  if (dtype(key) == "F64") return copy<double>(key, "F64");
  const std::vector<float> values = f32(key);
  return {values.begin(), values.end()};
}

std::vector<uint8_t> Tensors::u8(const std::string& key) const {
  return copy<uint8_t>(key, dtype(key) == "BOOL" ? "BOOL" : "U8");
}

std::vector<int8_t> Tensors::i8(const std::string& key) const { return copy<int8_t>(key, "I8"); }

std::vector<int32_t> Tensors::i32(const std::string& key) const { return copy<int32_t>(key, "I32"); }

std::vector<int64_t> Tensors::i64(const std::string& key) const {
  if (dtype(key) == "I64") return copy<int64_t>(key, "I64");
  const std::vector<int32_t> values = i32(key);
  return {values.begin(), values.end()};
}

std::string Tensors::metadata(const std::string& key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? "" : it->second;
}

}  // namespace golden
