#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/dtype.h"
#include "memory/file.h"

namespace qlora {

// A tensor of a safetensors file. Rank 0 and dimensions of size 0 are legal.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // from the file's first byte
  uint64_t bytes = 0;

  int64_t elements() const;
  std::string shape_text() const;  // "[128, 64]"
};

// One safetensors file, mapped: u64 N, N bytes of JSON, data. The constructor checks everything that the
// reference reader does (header length, UTF-8, JSON, duplicate names, overflow, sizes, overlaps, holes,
// trailing bytes) before it believes a number; Category::input, naming file, tensor and byte.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  const MappedFile& file() const { return file_; }
  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order of their data
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const TensorInfo* find(const std::string& name) const;  // nullptr: absent
  // The bytes of a tensor of this file. They need not be aligned to the dtype.
  const std::byte* data(const TensorInfo& t) const { return file_.data() + t.offset; }

 private:
  void parse(std::string_view header);
  void check_layout(uint64_t data_begin);
  MappedFile file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  std::unordered_map<std::string, size_t> index_;
};

// The tensors of a folder: NAME.safetensors, or the shards that NAME.safetensors.index.json lists (names
// without folders, no links out of the folder but the hub cache's own into blobs/; every listed tensor must
// be in its shard).
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::string& folder, const std::string& name = "model");
  static bool exists(const std::string& folder, const std::string& name = "model");
  struct Entry {
    const SafetensorsFile* file;
    const TensorInfo* info;
    const std::byte* data() const { return file->data(*info); }
  };
  // nullptr: absent.
  const Entry* find(const std::string& name) const;
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

 private:
  void open_shards(const std::string& folder, const std::string& index_path);
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  uint64_t bytes() const;
};

// Streams a safetensors file: every tensor is declared first, then the data come in order(): dtype
// descending, then name, as the reference writer has it. Category::io when the system fails; nothing stands
// at `path` before commit().
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  const std::vector<TensorSpec>& order() const { return tensors_; }
  // The next bytes of tensor `name`, which must be the first of order() that is not complete. One without
  // elements is complete from the start; an empty write to it is taken at any time.
  void write(const std::string& name, const void* data, size_t bytes);
  void commit();

 private:
  void skip_complete();
  FileWriter file_;
  std::vector<TensorSpec> tensors_;
  size_t at_ = 0;
  uint64_t done_ = 0;
};

// The rank of a dtype in a safetensors file: higher ones come first.
int safetensors_rank(DType t);
// "BF16"; and back, false when it is none that the engine knows.
std::string_view safetensors_name(DType t);
bool parse_safetensors_name(std::string_view name, DType& out);

}  // namespace qlora
