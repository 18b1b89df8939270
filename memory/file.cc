#include "memory/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>

#include "memory/mapping_guard.h"

namespace qlora {
namespace {

constexpr size_t kBufferBytes = size_t{128} << 10;

std::string reason() { return std::generic_category().message(errno); }

// ---- mapped ranges, as the SIGBUS handler reads them ----

struct Slot {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  std::atomic<char*> path{nullptr};
};
constexpr int kSlots = 4096;
std::array<Slot, kSlots> slots;
std::mutex slots_mutex;
struct sigaction former_action;

void say(const char* text) {
  // Nothing can be done about a stderr that does not take it.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

// Async-signal-safe. A SIGBUS outside of our files is somebody else's: it is raised again under the former
// action.
void on_sigbus(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load();
    if (begin == 0 || address < begin || address >= slot.end.load()) continue;
    say(slot.path.load());
    say(": the file shrank, or its disk failed, while it was being read; leave it in place and run again\n");
    _exit(static_cast<int>(Category::io));
  }
  sigaction(SIGBUS, &former_action, nullptr);
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &former_action);
  });
}

int take_slot(const void* data, size_t size, const std::string& path) {
  const std::lock_guard lock(slots_mutex);
  for (int i = 0; i < kSlots; ++i) {
    Slot& slot = slots[static_cast<size_t>(i)];
    if (slot.begin.load() != 0) continue;
    char* copy = strdup(path.c_str());
    if (copy == nullptr) throw std::bad_alloc();
    slot.path.store(copy);
    slot.end.store(reinterpret_cast<uintptr_t>(data) + size);
    slot.begin.store(reinterpret_cast<uintptr_t>(data));  // last: from here on the handler sees it
    return i;
  }
  return -1;
}

void free_slot(int index) {
  const std::lock_guard lock(slots_mutex);
  Slot& slot = slots[static_cast<size_t>(index)];
  slot.begin.store(0);
  slot.end.store(0);
  std::free(slot.path.exchange(nullptr));
}

// ---- reading ----

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// A descriptor of a regular file, and which it is. O_NONBLOCK: a FIFO is refused, not waited for.
int open_regular(const std::string& path, FileId& id) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == EIO || errno == EMFILE || errno == ENFILE || errno == ENOMEM)
      fail_by_system(path, {errno, std::generic_category()});
    fail(Category::input, path, ": cannot be opened: ", reason(), "; check the path and its permissions");
  }
  struct stat info = {};
  if (::fstat(fd, &info) != 0) {
    const std::string why = reason();
    ::close(fd);
    fail(Category::io, path, ": cannot be examined: ", why, "; check the disk");
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    fail(Category::input, path, ": is ", S_ISDIR(info.st_mode) ? "a folder" : "no regular file",
         "; name a regular file");
  }
  id = {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size)};
  return fd;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string temporary_name(const std::string& path) {
  static std::atomic<unsigned> counter{0};
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(0, name) + "." + path.substr(name) + ".partial-" + std::to_string(::getpid()) + "-" +
         std::to_string(counter++);
}

[[noreturn]] void write_failed(const std::string& path) {
  const bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
  const std::string why = reason();
  fail(Category::io, path, ": cannot be written: ", why, "; ",
       full ? "free some space and run again" : "check the disk and the folder's permissions");
}

// write or pwrite until all is out: short writes go on, EINTR is tried again.
template <class Write>
void write_all(const std::string& path, const char* data, size_t bytes, Write&& write_some) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = write_some(data + done, bytes - done, done);
    if (n < 0) {
      if (errno == EINTR) continue;
      write_failed(path);
    }
    if (n == 0) {
      errno = EIO;
      write_failed(path);
    }
    done += static_cast<size_t>(n);
  }
}

int sync_retrying(int fd) {
  int result;
  do result = ::fsync(fd);
  while (result != 0 && errno == EINTR);
  return result;
}

}  // namespace

MappingGuard::MappingGuard(const void* data, size_t bytes, const std::string& path) {
  install_handler();
  slot_ = take_slot(data, bytes, path);
  if (slot_ < 0) fail(Category::io, path, ": more than ", kSlots, " files are mapped at once; merge shards");
}

MappingGuard::~MappingGuard() { free_slot(slot_); }

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor fd(open_regular(path, id_));
  const size_t size = id_.size;
  if (size == 0) return;  // nothing to map; data() stays null
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) {
    fail(errno == ENOMEM ? Category::memory : Category::io, path, ": cannot be mapped (", size,
         " bytes): ", reason(), "; check limits on address space");
  }
  install_handler();
  slot_ = take_slot(data, size, path);
  if (slot_ < 0) {
    ::munmap(data, size);
    fail(Category::io, path, ": more than ", kSlots, " files are mapped at once; merge shards");
  }
  data_ = static_cast<const std::byte*>(data);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  free_slot(slot_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void forget_pages(const void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + bytes) / page * page;
  // Advice: a refusal costs memory, not correctness.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void MappedFile::forget(size_t offset, size_t bytes) const {
  if (data_ == nullptr || offset >= size_) return;
  // To the end: the last page too, though the file fills a part of it.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  forget_pages(data_ + offset, bytes < size_ - offset ? bytes : (size_ + page - 1) / page * page - offset);
}

FileWriter::FileWriter(const std::string& path) : path_(path), temporary_(temporary_name(path)) {
  // The rename would put a file where a device or a pipe (/dev/null, /dev/stdout) stands.
  struct stat info = {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    fail(Category::io, path, ": is no regular file, and nothing else is written over; name a file");
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0 && errno == EEXIST) {  // left by a process of the same number that was killed
    ::unlink(temporary_.c_str());
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  }
  if (fd_ < 0) write_failed(path_);
}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void FileWriter::flush() {
  write_all(path_, buffer_.data(), buffer_.size(),
            [this](const char* p, size_t n, size_t) { return ::write(fd_, p, n); });
  buffer_.clear();
}

void FileWriter::write(const void* data, size_t bytes) {
  check(fd_ >= 0, path_, ": written to after commit");
  if (buffer_.size() + bytes > kBufferBytes) flush();
  const char* source = static_cast<const char*>(data);
  if (bytes >= kBufferBytes)
    write_all(path_, source, bytes, [this](const char* p, size_t n, size_t) { return ::write(fd_, p, n); });
  else
    buffer_.reserve(kBufferBytes), buffer_.append(source, bytes);
  written_ += bytes;
}

void FileWriter::write_at(uint64_t offset, const void* data, size_t bytes) {
  check(fd_ >= 0 && offset <= written_ && bytes <= written_ - offset, path_, ": overwrites ", bytes,
        " bytes at ", offset, " of ", written_);
  flush();
  write_all(path_, static_cast<const char*>(data), bytes, [&](const char* p, size_t n, size_t done) {
    return ::pwrite(fd_, p, n, static_cast<off_t>(offset + done));
  });
}

void FileWriter::commit() {
  check(fd_ >= 0, path_, ": committed twice");
  flush();
  if (sync_retrying(fd_) != 0) write_failed(path_);
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    errno = error;
    write_failed(path_);
  }
  sync_folder(folder_of(path_));
}

std::string read_file(const std::string& path, size_t limit) {
  FileId id;
  const Descriptor fd(open_regular(path, id));
  const size_t size = id.size;
  if (size > limit)
    fail(Category::input, path, ": is ", size, " bytes, more than the ", limit,
         " that such a file may have; check that it is the right file");
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(fd.get(), text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(Category::io, path, ": cannot be read: ", reason(), "; check the disk");
    if (n == 0) break;  // it shrank: what is left is the file
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

void write_file(const std::string& path, std::string_view text) {
  FileWriter writer(path);
  writer.write(text);
  writer.commit();
}

void fail_by_system(const std::string& path, const std::error_code& error) {
  if (error == std::errc::not_enough_memory)
    fail(Category::memory, path, ": ", error.message(), "; end other programs, or give this one more");
  fail(Category::io, path, ": the system failed: ", error.message(),
       "; check the disk, its room and the folder's permissions");
}

void sync_folder(const std::string& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) fail(Category::io, folder, ": cannot be opened: ", reason(), "; check the folder");
  // Some file systems (Windows drives under WSL) know no fsync of a folder.
  if (sync_retrying(fd.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail(Category::io, folder, ": cannot be synced: ", reason(), "; check the disk");
}

}  // namespace qlora
