#include "model/io/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <unordered_set>

#include "memory/error.h"
#include "model/io/json.h"

namespace qlora {
namespace {

using simdjson::dom::element;
using simdjson::dom::object;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kHeaderDepth = 8;

struct Name {
  DType dtype;
  std::string_view name;
};
// In the order of the reference implementation's enumeration, which is the order on disk, last first.
constexpr std::array<Name, 13> kNames = {{{DType::boolean, "BOOL"},
                                          {DType::u8, "U8"},
                                          {DType::i8, "I8"},
                                          {DType::i16, "I16"},
                                          {DType::u16, "U16"},
                                          {DType::f16, "F16"},
                                          {DType::bf16, "BF16"},
                                          {DType::i32, "I32"},
                                          {DType::u32, "U32"},
                                          {DType::f32, "F32"},
                                          {DType::f64, "F64"},
                                          {DType::i64, "I64"},
                                          {DType::u64, "U64"}}};

// False on overflow, as for a size past int64.
bool checked_bytes(const std::vector<int64_t>& shape, DType dtype, uint64_t& bytes) {
  uint64_t product = 1;
  for (const int64_t d : shape)
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(d), &product)) return false;
  return !__builtin_mul_overflow(product, uint64_t{size_of(dtype)}, &bytes) && bytes <= uint64_t{INT64_MAX};
}

// One entry of the header: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}.
class EntryParser {
 public:
  EntryParser(const std::string& path, std::string_view name) : path_(path), name_(name) {}

  TensorInfo parse(element value) {
    TensorInfo t;
    t.name = std::string(name_);
    object fields;
    if (value.get(fields) != simdjson::SUCCESS) bad("its entry is no object");
    std::array<bool, 3> seen{};
    uint64_t begin = 0, end = 0;
    for (const auto field : fields) {
      const std::string_view key = field.key;
      const size_t which = key == "dtype" ? 0 : key == "shape" ? 1 : key == "data_offsets" ? 2 : 3;
      if (which == 3) bad("unknown field ", shown_text(key));
      if (seen[which]) bad("the field ", key, " stands twice");
      seen[which] = true;
      if (which == 0) t.dtype = dtype(field.value);
      if (which == 1) t.shape = shape(field.value);
      if (which == 2) offsets(field.value, begin, end);
    }
    if (!seen[0] || !seen[1] || !seen[2]) bad("dtype, shape or data_offsets is missing");
    uint64_t bytes = 0;
    if (!checked_bytes(t.shape, t.dtype, bytes)) bad("the product of its shape overflows");
    if (begin > end || end - begin != bytes)
      bad("data_offsets [", begin, ", ", end, "] do not span the ", bytes, " bytes of its shape and dtype");
    t.offset = begin;
    t.bytes = bytes;
    return t;
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(Args&&... args) const {
    fail(Category::input, path_, ": tensor ", shown_text(name_), ": ", std::forward<Args>(args)...,
         "; the file is damaged: fetch or write it again");
  }
  DType dtype(element value) const {
    std::string_view text;
    DType out{};
    if (value.get(text) != simdjson::SUCCESS) bad("its dtype is no string");
    if (!parse_safetensors_name(text, out))
      fail(Category::input, path_, ": tensor ", shown_text(name_), ": dtype ", shown_text(text),
           " is not supported; convert the tensor to F32, F16 or BF16");
    return out;
  }
  std::vector<int64_t> shape(element value) const {
    simdjson::dom::array list;
    if (value.get(list) != simdjson::SUCCESS) bad("its shape is no list");
    std::vector<int64_t> out;
    for (const element d : list) {
      int64_t n = 0;
      if (d.get(n) != simdjson::SUCCESS || n < 0) bad("a dimension of its shape is no size");
      out.push_back(n);
    }
    return out;
  }
  void offsets(element value, uint64_t& begin, uint64_t& end) const {
    simdjson::dom::array list;
    if (value.get(list) != simdjson::SUCCESS || list.size() != 2 ||
        list.at(0).get(begin) != simdjson::SUCCESS || list.at(1).get(end) != simdjson::SUCCESS)
      bad("data_offsets are not two sizes");
  }

  const std::string& path_;
  std::string_view name_;
};

}  // namespace

int safetensors_rank(DType t) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i].dtype == t) return static_cast<int>(i);
  return -1;
}

std::string_view safetensors_name(DType t) { return kNames[static_cast<size_t>(safetensors_rank(t))].name; }

bool parse_safetensors_name(std::string_view name, DType& out) {
  for (const Name& n : kNames)
    if (n.name == name) {
      out = n.dtype;
      return true;
    }
  return false;
}

int64_t TensorInfo::elements() const { return static_cast<int64_t>(bytes / size_of(dtype)); }

std::string TensorInfo::shape_text() const {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  if (file_.size() < 8)
    fail(Category::input, path, ": ", file_.size(),
         " bytes are too few for a safetensors file; fetch it again");
  uint64_t n = 0;
  std::memcpy(&n, file_.data(), 8);  // little-endian, as every machine that this builds for
  if (n > kMaxHeader)
    fail(Category::input, path, ": byte 0: a header of ", n, " bytes is over the format's limit of ",
         kMaxHeader, "; this is no safetensors file");
  if (n > file_.size() - 8)
    fail(Category::input, path, ": the header of ", n, " bytes passes the end of the file (", file_.size(),
         " bytes): it was cut short; fetch it again");
  parse(file_.text().substr(8, n));
  check_layout(8 + n);
}

void SafetensorsFile::parse(std::string_view header) {
  simdjson::dom::parser parser(kMaxHeader + 64);
  const size_t capacity = std::max<size_t>(header.size(), 64);
  object fields;
  auto error = parser.allocate(capacity, kHeaderDepth);
  if (!error) error = parser.parse(header.data(), header.size()).get(fields);  // copies and pads
  if (error == simdjson::MEMALLOC) throw std::bad_alloc();
  if (error)
    fail(Category::input, path(), ": byte 8: the header is no valid JSON object (",
         simdjson::error_message(error), "); fetch the file again");
  std::unordered_set<std::string_view> seen;
  for (const auto field : fields) {
    const std::string_view key = field.key;
    if (!seen.insert(key).second)
      fail(Category::input, path(), ": tensor ", shown_text(key),
           " stands twice in the header; write the file again");
    if (std::any_of(key.begin(), key.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
      fail(Category::input, path(), ": tensor ", shown_text(key),
           ": control characters in a name; rename it");
    if (key != "__metadata__") {
      tensors_.push_back(EntryParser(path(), key).parse(field.value));
      continue;
    }
    object pairs;
    if (field.value.get(pairs) != simdjson::SUCCESS)
      fail(Category::input, path(), ": __metadata__ is no object; write the file again");
    for (const auto pair : pairs) {
      std::string_view text;
      if (pair.value.get(text) != simdjson::SUCCESS ||
          !metadata_.emplace(std::string(pair.key), std::string(text)).second)
        fail(Category::input, path(), ": __metadata__ ", shown_text(pair.key),
             ": is no string or stands twice; write the file again");
    }
  }
}

void SafetensorsFile::check_layout(uint64_t data_begin) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.offset + a.bytes) < std::pair(b.offset, b.offset + b.bytes);
  });
  const uint64_t room = file_.size() - data_begin;
  uint64_t at = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    TensorInfo& t = tensors_[i];
    if (t.offset != at)
      fail(Category::input, path(), ": tensor ", shown_text(t.name), ": begins at byte ", t.offset,
           " of the data where the tensor before it ends at ", at, " (a ", t.offset < at ? "overlap" : "hole",
           "); write the file again");
    if (t.bytes > room - at)
      fail(Category::input, path(), ": tensor ", shown_text(t.name), ": ends at byte ", at + t.bytes,
           " of the data, past the file's ", room, ": it was cut short; fetch it again");
    at += t.bytes;
    t.offset += data_begin;
    index_.emplace(t.name, i);
  }
  if (at != room)
    fail(Category::input, path(), ": ", room - at, " bytes follow the last tensor; fetch the file again");
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

uint64_t TensorSpec::bytes() const {
  uint64_t n = 0;
  check(checked_bytes(shape, dtype, n), name, ": the product of its shape overflows");
  return n;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path), tensors_(std::move(tensors)) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int ra = safetensors_rank(a.dtype), rb = safetensors_rank(b.dtype);
    return ra != rb ? ra > rb : a.name < b.name;
  });
  // Tensor by tensor: as one value the header takes a KiB a tensor.
  std::string text = "{";
  const auto add = [&](const std::string& key, const Json& value) {
    text += (text.size() > 1 ? "," : "") + Json(key).dump() + ":" + value.dump();
  };
  if (!metadata.empty()) add("__metadata__", Json(metadata));
  uint64_t at = 0;
  for (const TensorSpec& t : tensors_) {
    const uint64_t end = at + t.bytes();
    add(t.name, {{"dtype", safetensors_name(t.dtype)}, {"shape", t.shape}, {"data_offsets", {at, end}}});
    at = end;
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t n = text.size();
  file_.write(&n, 8);
  file_.write(text);
  skip_complete();
}

// Tensors without elements have no data to wait for.
void SafetensorsWriter::skip_complete() {
  while (at_ < tensors_.size() && done_ == tensors_[at_].bytes()) {
    ++at_;
    done_ = 0;
  }
}

void SafetensorsWriter::write(const std::string& name, const void* data, size_t bytes) {
  const auto empty = [&](const TensorSpec& t) { return t.name == name && t.bytes() == 0; };
  if (bytes == 0 && std::any_of(tensors_.begin(), tensors_.end(), empty)) return;
  check(at_ < tensors_.size() && tensors_[at_].name == name, "tensor ", name, " is written out of order");
  check(bytes <= tensors_[at_].bytes() - done_, "more bytes than tensor ", name, " has");
  file_.write(data, bytes);
  done_ += bytes;
  skip_complete();
}

void SafetensorsWriter::commit() {
  check(at_ == tensors_.size(), "a file is finished before its tensors are");
  file_.commit();
}

}  // namespace qlora
