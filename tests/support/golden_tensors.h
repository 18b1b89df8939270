#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

// Reference data of the tests: small safetensors files under tests/golden. A test's own reader, so that a
// fault of the engine's cannot hide itself. A missing file, key or wrong dtype throws: the test fails.
namespace golden {

// The path of a file under tests/golden.
std::string path(const std::string& relative);

class Tensors {
 public:
  explicit Tensors(const std::string& relative);
  bool has(const std::string& key) const { return entries_.count(key) != 0; }
  std::vector<std::string> keys() const;  // ascending
  const std::vector<int64_t>& shape(const std::string& key) const { return at(key).shape; }
  const std::string& dtype(const std::string& key) const { return at(key).dtype; }  // "F32", "BF16", "U8" ...
  int64_t count(const std::string& key) const { return at(key).count; }
  const uint8_t* bytes(const std::string& key) const;     // as stored; the alignment is that of the file
  std::vector<float> f32(const std::string& key) const;   // of F32, BF16 or F16, exact
  std::vector<double> f64(const std::string& key) const;  // of F64, F32, BF16 or F16, exact
  std::vector<uint8_t> u8(const std::string& key) const;  // of U8 or BOOL
  std::vector<int8_t> i8(const std::string& key) const;
  std::vector<int32_t> i32(const std::string& key) const;
  std::vector<int64_t> i64(const std::string& key) const;  // of I64 or I32
  // The string value of __metadata__, "" when absent.
  std::string metadata(const std::string& key) const;

 private:
  struct Entry {
    std::string dtype;
    std::vector<int64_t> shape;
    int64_t count = 0;
    size_t begin = 0, end = 0;
  };
  const Entry& at(const std::string& key) const;
  template <class T>
  std::vector<T> copy(const std::string& key, const char* dtype) const;
  std::string path_, file_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace golden
