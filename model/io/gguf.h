#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "memory/file.h"
#include "quant/weight_view.h"

namespace qlora {

// The types of metadata values, as numbered in the file.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// A ggml tensor type: elements and bytes of a block. `format` is set where the engine computes with it.
struct GgmlType {
  uint32_t id;
  const char* name;
  int block;
  int bytes;
  std::optional<Format> format;
};

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::vector<int64_t> shape;  // outermost first: [out_features, in_features], the reverse of the file's ne
  uint64_t offset = 0;         // from the file's first byte
  uint64_t bytes = 0;
};

// A GGUF file of version 2 or 3 (they differ in byte order only; big-endian files are refused), mapped. The
// constructor checks counts, lengths, products and offsets against the file's size before it allocates or
// believes them; Category::input, naming file, key or tensor, and byte. Metadata stay in the file: an array
// costs memory only when it is asked for.
class GgufFile {
 public:
  explicit GgufFile(const std::string& path);
  static bool looks_like(const std::string& path);  // a regular file that begins with the magic
  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }
  uint32_t version() const { return version_; }

  // Typed access: nullopt when the key is absent; Category::input when it has another type or is out of
  // range. Integers of any width and sign are integers; f32 and f64 are numbers, integers too.
  bool has(const std::string& key) const { return values_.count(key) != 0; }
  std::vector<std::string> keys() const;  // sorted
  std::optional<int64_t> integer(const std::string& key, int64_t low, int64_t high) const;
  std::optional<double> number(const std::string& key) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> string(const std::string& key) const;
  std::optional<std::vector<std::string>> strings(const std::string& key) const;
  std::optional<std::vector<int64_t>> integers(const std::string& key) const;
  std::optional<std::vector<float>> floats(const std::string& key) const;
  // A value printed for people: scalars and strings whole, arrays as "[49152 strings]".
  std::string shown_value(const std::string& key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* find(const std::string& name) const;               // nullptr: absent
  const std::byte* data(const GgufTensor& t) const { return file_.data() + t.offset; }

 private:
  // Where a value lies. For arrays `type` is the elements' and `at` their first byte.
  struct Value {
    GgufType type;
    bool array = false;
    uint64_t count = 1;
    uint64_t at = 0;
  };
  class Cursor;
  void read_values(Cursor& in, uint64_t count);
  Value read_value(Cursor& in, const std::string& key, GgufType type, bool array);
  void read_tensors(Cursor& in, uint64_t count);
  void place_tensors(uint64_t data_begin);
  const Value* find_value(const std::string& key, bool array) const;
  [[noreturn]] void wrong_type(const std::string& key, const char* want) const;
  std::optional<int64_t> integer_at(const Value& v, uint64_t& at) const;
  std::optional<double> number_at(const Value& v, uint64_t& at) const;

  MappedFile file_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  std::unordered_map<std::string, Value> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace qlora
