#pragma once
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "memory/error.h"
#include "model/io/checkpoint.h"
#include "tests/support/temp_folder.h"

namespace qlora::io_test {

inline const std::string kModels = std::string(QLORA_GOLDEN) + "/models";

using test::TempFolder;

// A new file each time: ext4 flushes one that is truncated and written again, which takes milliseconds.
inline void put(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(out.good()) << path;
}

inline std::string get(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// `f` throws an Error of this category, on one line, that has every one of `parts`.
inline void expect_error(Category category, std::initializer_list<std::string> parts,
                         const std::function<void()>& f) {
  try {
    f();
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), category) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << part << " is not in: " << e.what();
  }
}

// A fuzzed input either is taken or gets an Error of category input; anything else escapes and fails the
// test.
inline bool survives(const std::function<void()>& f) {
  try {
    f();
    return true;
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::input) << e.what();
    return false;
  }
}

template <class T>
std::string bytes_of(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

inline std::string safetensors(const std::string& header, const std::string& data) {
  return bytes_of<uint64_t>(header.size()) + header + data;
}

// Writes a GGUF byte by byte, right or wrong.
class GgufBuilder {
 public:
  static std::string text(const std::string& s) { return bytes_of<uint64_t>(s.size()) + s; }
  GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& value) {
    values_ += text(key) + bytes_of(type) + value;
    ++n_values_;
    return *this;
  }
  GgufBuilder& u32(const std::string& key, uint32_t v) { return raw(key, 4, bytes_of(v)); }
  GgufBuilder& f32(const std::string& key, float v) { return raw(key, 6, bytes_of(v)); }
  GgufBuilder& string(const std::string& key, const std::string& v) { return raw(key, 8, text(v)); }
  GgufBuilder& array(const std::string& key, uint32_t type, uint64_t count, const std::string& values) {
    return raw(key, 9, bytes_of(type) + bytes_of(count) + values);
  }
  GgufBuilder& strings(const std::string& key, const std::vector<std::string>& list) {
    std::string all;
    for (const std::string& s : list) all += text(s);
    return array(key, 8, list.size(), all);
  }
  // ne as in the file: fastest dimension first.
  GgufBuilder& tensor(const std::string& name, const std::vector<int64_t>& ne, uint32_t type,
                      const std::string& data, int64_t shift = 0) {
    tensors_ += text(name) + bytes_of(static_cast<uint32_t>(ne.size()));
    for (const int64_t n : ne) tensors_ += bytes_of(n);
    tensors_ += bytes_of(type) + bytes_of(static_cast<uint64_t>(static_cast<int64_t>(data_.size()) + shift));
    data_ += data;
    data_.resize((data_.size() + 31) / 32 * 32);
    ++n_tensors_;
    return *this;
  }
  std::string build(uint32_t version = 3) const { return build(version, n_tensors_, n_values_); }
  std::string build(uint32_t version, uint64_t n_tensors, uint64_t n_values) const {
    std::string out =
        "GGUF" + bytes_of(version) + bytes_of(n_tensors) + bytes_of(n_values) + values_ + tensors_;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }

 private:
  std::string values_, tensors_, data_;
  uint64_t n_values_ = 0, n_tensors_ = 0;
};

inline std::vector<float> rows_of(const Checkpoint& c, const std::string& name, int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  c.read_rows(name, 0, rows, out.data());
  return out;
}

}  // namespace qlora::io_test
