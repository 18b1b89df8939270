#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "memory/error.h"

namespace qlora {

// Which file a path led to, so that one opened again is known to be the same.
struct FileId {
  uint64_t device = 0, inode = 0, size = 0;
  bool operator==(const FileId&) const = default;
};

// A file mapped read-only, whole. Pages come from the page cache as they are touched and may be dropped
// again. A file that shrinks while it is mapped ends the process with one line and exit 5 instead of a
// SIGBUS.
class MappedFile {
 public:
  MappedFile() = default;
  // Category::input when absent or no regular file, Category::io when the system fails.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& o) noexcept { swap(o); }
  MappedFile& operator=(MappedFile&& o) noexcept {
    swap(o);
    return *this;
  }
  const std::string& path() const { return path_; }
  const FileId& id() const { return id_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  bool contains(const void* p) const { return p >= data_ && p < data_ + size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  // Tells the system that [offset, offset + bytes) will not be read again soon.
  void forget(size_t offset, size_t bytes) const;

 private:
  void swap(MappedFile& o) {
    std::swap(path_, o.path_);
    std::swap(id_, o.id_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(slot_, o.slot_);
  }
  std::string path_;
  FileId id_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int slot_ = -1;  // in the table that the SIGBUS handler reads
};

// The same for bytes that some MappedFile holds: whole pages of [data, data + bytes).
void forget_pages(const void* data, size_t bytes);

// Writes a file to the side and puts it in place on commit(): written, synced, renamed, folder synced. Until
// then, and when anything fails (Category::io, naming the file), what stood at `path` stays as it was.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Overwrites bytes already written (a header known last).
  void write_at(uint64_t offset, const void* data, size_t bytes);
  uint64_t written() const { return written_; }
  void commit();

 private:
  void flush();
  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::string buffer_;
};

// The whole file as a string; Category::input when it is absent, no regular file or over `limit` bytes.
std::string read_file(const std::string& path, size_t limit);
// FileWriter in one call.
void write_file(const std::string& path, std::string_view text);
// What the system refused for `path`, as one line: Category::memory where it lacked memory (ENOMEM, which
// opening a folder may give), else Category::io.
[[noreturn]] void fail_by_system(const std::string& path, const std::error_code& error);
// fsync of a folder, so that renames in it last. Category::io.
void sync_folder(const std::string& folder);

}  // namespace qlora
