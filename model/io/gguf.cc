#include "model/io/gguf.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "memory/error.h"
#include "model/io/json.h"

namespace qlora {
namespace {

// The types whose block the format notes give; the engine's own name a Format.
constexpr std::array<GgmlType, 19> kTypes = {{{0, "F32", 1, 4, Format::f32},
                                              {1, "F16", 1, 2, Format::f16},
                                              {2, "Q4_0", 32, 18, Format::q4_0},
                                              {3, "Q4_1", 32, 20, Format::q4_1},
                                              {6, "Q5_0", 32, 22, {}},
                                              {7, "Q5_1", 32, 24, {}},
                                              {8, "Q8_0", 32, 34, Format::q8_0},
                                              {10, "Q2_K", 256, 84, {}},
                                              {11, "Q3_K", 256, 110, {}},
                                              {12, "Q4_K", 256, 144, {}},
                                              {13, "Q5_K", 256, 176, {}},
                                              {14, "Q6_K", 256, 210, {}},
                                              {20, "IQ4_NL", 32, 18, {}},
                                              {23, "IQ4_XS", 256, 136, {}},
                                              {24, "I8", 1, 1, {}},
                                              {26, "I32", 1, 4, {}},
                                              {28, "F64", 1, 8, {}},
                                              {30, "BF16", 1, 2, Format::bf16},
                                              {39, "MXFP4", 32, 17, {}}}};

const GgmlType* type_of(uint32_t id) {
  const auto* it = std::find_if(kTypes.begin(), kTypes.end(), [id](const GgmlType& t) { return t.id == id; });
  return it == kTypes.end() ? nullptr : it;
}

constexpr uint64_t kMaxName = 64;    // ggml's names are shorter
constexpr uint64_t kMaxKey = 65535;  // the specification's limit
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kLeastValueBytes = 8 + 4 + 1;       // key length, type, value
constexpr uint64_t kLeastTensorBytes = 8 + 4 + 4 + 8;  // name length, dims, type, offset

size_t size_of_type(GgufType t) {
  switch (t) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      break;
  }
  return 0;
}

bool plain_name(std::string_view name) {
  return std::none_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; });
}

}  // namespace

// Reads forward through the mapped file; nothing is taken that does not fit into what is left.
class GgufFile::Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}
  uint64_t at() const { return at_; }
  uint64_t left() const { return file_.size() - at_; }
  template <class T>
  T take(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, file_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string_view text(uint64_t limit, const char* what) {
    const uint64_t begin = at_;
    const auto n = take<uint64_t>(what);
    if (n > limit)
      fail(Category::input, file_.path(), ": byte ", begin, ": ", what, " of ", n,
           " bytes is over the limit of ", limit, "; this is no valid GGUF file");
    need(n, what);
    const std::string_view view = file_.text().substr(at_, n);
    at_ += n;
    return view;
  }
  void skip(uint64_t bytes, const char* what) {
    need(bytes, what);
    at_ += bytes;
  }

 private:
  void need(uint64_t bytes, const char* what) const {
    if (bytes > left())
      fail(Category::input, file_.path(), ": byte ", at_, ": ", what, " of ", bytes,
           " bytes passes the end of the file (", file_.size(), " bytes): it was cut short; fetch it again");
  }
  const MappedFile& file_;
  uint64_t at_ = 0;
};

bool GgufFile::looks_like(const std::string& path) {
  const MappedFile file(path);
  return file.size() >= 4 && std::memcmp(file.data(), "GGUF", 4) == 0;
}

GgufFile::GgufFile(const std::string& path) : file_(path) {
  Cursor in(file_);
  if (in.take<uint32_t>("the magic") != 0x46554747u)
    fail(Category::input, path, ": byte 0: does not begin with GGUF; this is no GGUF file");
  version_ = in.take<uint32_t>("the version");
  if (version_ != 2 && version_ != 3)
    fail(Category::input, path, ": byte 4: GGUF version ", version_,
         (version_ & 0xffffu) == 0 ? " (big-endian)" : "",
         " is not supported; convert the model to version 3");
  const auto n_tensors = in.take<uint64_t>("the number of tensors");
  const auto n_values = in.take<uint64_t>("the number of keys");
  if (n_values > in.left() / kLeastValueBytes || n_tensors > in.left() / kLeastTensorBytes)
    fail(Category::input, path, ": byte 8: ", n_tensors, " tensors and ", n_values, " keys do not fit into ",
         file_.size(), " bytes; the file is damaged: fetch it again");
  read_values(in, n_values);
  const int64_t alignment =
      integer("general.alignment", INT64_MIN, INT64_MAX).value_or(static_cast<int64_t>(alignment_));
  if (alignment < 1 || alignment > static_cast<int64_t>(kMaxAlignment) || (alignment & (alignment - 1)) != 0)
    fail(Category::input, path, ": general.alignment is ", alignment, " where a power of two up to ",
         kMaxAlignment, " belongs; convert the model again");
  alignment_ = static_cast<uint64_t>(alignment);
  read_tensors(in, n_tensors);
  place_tensors((in.at() + alignment_ - 1) / alignment_ * alignment_);
}

void GgufFile::read_values(Cursor& in, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t begin = in.at();
    const std::string key(in.text(kMaxKey, "a key"));
    if (!plain_name(key))
      fail(Category::input, path(), ": byte ", begin, ": the key ", shown_text(key),
           " holds control characters; convert the model again");
    const auto type = in.take<uint32_t>("a type");
    if (type > static_cast<uint32_t>(GgufType::f64))
      fail(Category::input, path(), ": byte ", in.at() - 4, ": key ", shown_text(key),
           " has the unknown type ", type, "; convert the model again");
    const Value value = read_value(in, key, static_cast<GgufType>(type), false);
    if (!values_.emplace(key, value).second)
      fail(Category::input, path(), ": byte ", begin, ": the key ", shown_text(key),
           " stands twice; convert the model again");
  }
}

GgufFile::Value GgufFile::read_value(Cursor& in, const std::string& key, GgufType type, bool array) {
  if (type == GgufType::array) {
    const auto element = in.take<uint32_t>("an element type");
    if (element > static_cast<uint32_t>(GgufType::f64) || element == static_cast<uint32_t>(GgufType::array))
      fail(Category::input, path(), ": byte ", in.at() - 4, ": key ", shown_text(key),
           " is an array of type ", element, ", which no GGUF has; convert the model again");
    return read_value(in, key, static_cast<GgufType>(element), true);
  }
  Value v{type, array};
  if (array) v.count = in.take<uint64_t>("a length");
  v.at = in.at();
  const uint64_t least = type == GgufType::string ? 8 : size_of_type(type);
  if (v.count > in.left() / least)
    fail(Category::input, path(), ": byte ", v.at, ": key ", shown_text(key), ": ", v.count,
         " elements pass the end of the file (", file_.size(), " bytes): it was cut short; fetch it again");
  if (type == GgufType::string)
    for (uint64_t i = 0; i < v.count; ++i) in.text(UINT64_MAX, "a string");
  else
    in.skip(v.count * least, "a value");
  return v;
}

void GgufFile::read_tensors(Cursor& in, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t begin = in.at();
    GgufTensor t;
    t.name = std::string(in.text(kMaxName - 1, "a tensor's name"));
    const auto bad = [&](auto&&... what) {
      fail(Category::input, path(), ": byte ", begin, ": tensor ", shown_text(t.name), ": ", what...,
           "; the file is damaged: fetch or convert it again");
    };
    if (!plain_name(t.name)) bad("control characters in a name");
    const auto dims = in.take<uint32_t>("a number of dimensions");
    if (dims > kMaxDims) bad(dims, " dimensions where ", kMaxDims, " are the most");
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
      const auto n = in.take<int64_t>("a dimension");
      if (n < 0 || __builtin_mul_overflow(elements, static_cast<uint64_t>(n), &elements))
        bad("a dimension of ", n, " is negative or overflows");
      t.shape.insert(t.shape.begin(), n);
    }
    const auto type = in.take<uint32_t>("a type");
    t.type = type_of(type);
    if (t.type == nullptr)
      fail(Category::input, path(), ": byte ", begin, ": tensor ", shown_text(t.name), ": ggml type ", type,
           " is not supported; convert the model to F16, BF16, Q4_0, Q4_1 or Q8_0");
    const auto block = static_cast<uint64_t>(t.type->block);
    if (dims > 0 && static_cast<uint64_t>(t.shape.back()) % block != 0)
      bad("rows of ", t.shape.back(), " elements are no whole ", t.type->name, " blocks of ", block);
    if (dims == 0 && block != 1) bad("a scalar of type ", t.type->name);
    if (__builtin_mul_overflow(elements / block, static_cast<uint64_t>(t.type->bytes), &t.bytes) ||
        t.bytes > uint64_t{INT64_MAX})
      bad("its size overflows");
    t.offset = in.take<uint64_t>("an offset");
    if (!index_.emplace(t.name, tensors_.size()).second) bad("the name stands twice");
    tensors_.push_back(std::move(t));
  }
}

void GgufFile::place_tensors(uint64_t data_begin) {
  uint64_t at = 0;  // never past the file's size, rounded up: no sum below overflows
  for (GgufTensor& t : tensors_) {
    if (t.offset != at)
      fail(Category::input, path(), ": tensor ", shown_text(t.name), ": its offset is ", t.offset, " where ",
           at, " is due; the file is damaged: fetch or convert it again");
    if (data_begin > file_.size() || at > file_.size() - data_begin ||
        t.bytes > file_.size() - data_begin - at)
      fail(Category::input, path(), ": tensor ", shown_text(t.name), ": its ", t.bytes, " bytes at ",
           data_begin + at, " pass the end of the file (", file_.size(),
           " bytes): it was cut short; fetch it again");
    t.offset = data_begin + at;
    at = (at + t.bytes + alignment_ - 1) / alignment_ * alignment_;
  }
}

const GgufTensor* GgufFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace qlora
