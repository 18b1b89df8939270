// Preloaded into a program under test (LD_PRELOAD): makes one call of the system fail, as the environment
// says.
//
//   QLORA_FAULT        eio     that call fails with EIO
//                      full    that write is cut in half; it and whatever takes room later fails with ENOSPC
//                      brief   every write from that one on takes at most 4093 bytes, small ones half
//                      pause   that call waits for a minute
//                      memory  that allocation of the program fails
//                      starve  that one and all later ones fail
//                      map     that mmap fails with ENOMEM
//                      thread  that thread is not started: EAGAIN
//   QLORA_FAULT_AT     which call, counted from 1
//   QLORA_FAULT_UNDER  files alone whose path starts so are counted: open for writing, write, pwrite, fsync,
//   close
//                      of what was written, rename, mkdir, unlink, rmdir
//   QLORA_FAULT_TOLD   a file that gets a line when it strikes: the call and its path
//
// No allocation, no C++ library: it runs inside malloc.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace {

enum class Kind { none, eio, full, brief, pause, memory, starve, map, thread };
constexpr const char* kNames[] = {"", "eio", "full", "brief", "pause", "memory", "starve", "map", "thread"};

Kind kind = Kind::none;
long strikes_at = 0, counted = 0;  // counted: atomically
const char* under = "";
const char* told = nullptr;
bool armed = false;  // inside main(): what comes before it is not the program's to survive

__attribute__((constructor)) void read_environment() {
  const char* name = getenv("QLORA_FAULT");
  for (int k = 1; name != nullptr && k <= static_cast<int>(Kind::thread); ++k)
    if (strcmp(name, kNames[k]) == 0) kind = static_cast<Kind>(k);
  const char* at = getenv("QLORA_FAULT_AT");
  strikes_at = at ? atol(at) : 1;
  if (const char* prefix = getenv("QLORA_FAULT_UNDER")) under = prefix;
  told = getenv("QLORA_FAULT_TOLD");
}

// Whether this is the call, or for lasting faults a later one.
bool strikes(bool lasting, const char* call, const char* path) {
  const long n = __atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED);
  if (lasting ? n < strikes_at : n != strikes_at) return false;
  if (n != strikes_at || told == nullptr) return true;
  const int saved = errno;
  const long fd = syscall(SYS_openat, AT_FDCWD, told, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const char* line[] = {call, " ", path, "\n"};
  for (const char* text : line) syscall(SYS_write, fd, text, strlen(text));
  syscall(SYS_close, fd);
  errno = saved;
  return true;
}

bool counts(const char* path) { return armed && path != nullptr && strncmp(path, under, strlen(under)) == 0; }

// The C library's own allocations for a thread fail as the thread does: that is the fault `thread`.
__thread bool starting_a_thread = false;

bool allocation_fails() {
  if (starting_a_thread || !armed || (kind != Kind::memory && kind != Kind::starve)) return false;
  return strikes(kind == Kind::starve, "allocation", "");
}

void* null_memory() {
  errno = ENOMEM;
  return nullptr;
}

// 0: go on. Else the errno to fail with. `room`: a full disk refuses it.
int file_fails(const char* call, const char* path, bool room) {
  if (!counts(path)) return 0;
  if (kind == Kind::eio) return strikes(false, call, path) ? EIO : 0;
  if (kind == Kind::full) return strikes(true, call, path) && room ? ENOSPC : 0;
  if (kind == Kind::pause && strikes(false, call, path)) {
    timespec left{60, 0};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
  }
  return 0;
}

// The path of a descriptor that was opened for writing alone or for a folder's sync; empty otherwise.
const char* path_of(int fd, char (&path)[4096]) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);
  path[n < 0 ? 0 : n] = 0;
  return path;
}

// What a write may take; -1 with errno set: none.
long may_write(const char* call, int fd, size_t bytes) {
  char path[4096];
  if (kind == Kind::none || !counts(path_of(fd, path))) return static_cast<long>(bytes);
  if (kind == Kind::brief) {
    if (!strikes(true, call, path) || bytes < 2) return static_cast<long>(bytes);
    return static_cast<long>(bytes / 2 < 4093 ? bytes / 2 : 4093);
  }
  const bool first = kind == Kind::full && __atomic_load_n(&counted, __ATOMIC_RELAXED) + 1 == strikes_at;
  if (const int error = file_fails(call, path, true)) {
    if (first && bytes > 1) return static_cast<long>(bytes / 2);
    errno = error;
    return -1;
  }
  return static_cast<long>(bytes);
}

long failing(int error) {
  errno = error;
  return -1;
}

long open_at(int folder, const char* path, int flags, mode_t mode) {
  const bool writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
  if (const int error = writes ? file_fails("open", path, (flags & O_CREAT) != 0) : 0) return failing(error);
  return syscall(SYS_openat, folder, path, flags, mode);
}

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

using Main = int (*)(int, char**, char**);
Main real_main = nullptr;
int main_armed(int argc, char** argv, char** environment) {
  armed = true;
  return real_main(argc, argv, environment);
}

}  // namespace

extern "C" {

int __libc_start_main(Main main, int argc, char** argv, void (*init)(), void (*fini)(), void (*rtld_fini)(),
                      void* stack_end) {
  real_main = main;
  using Start = int (*)(Main, int, char**, void (*)(), void (*)(), void (*)(), void*);
  return next<Start>("__libc_start_main")(main_armed, argc, argv, init, fini, rtld_fini, stack_end);
}

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) { return allocation_fails() ? null_memory() : __libc_malloc(bytes); }
void* calloc(size_t n, size_t bytes) { return allocation_fails() ? null_memory() : __libc_calloc(n, bytes); }
void* realloc(void* p, size_t bytes) { return allocation_fails() ? null_memory() : __libc_realloc(p, bytes); }
void* memalign(size_t alignment, size_t bytes) {
  return allocation_fails() ? null_memory() : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** p, size_t alignment, size_t bytes) {
  *p = memalign(alignment, bytes);
  return *p == nullptr ? ENOMEM : 0;
}

void* mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (armed && kind == Kind::map && strikes(false, "mmap", "")) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, fd, offset));
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*),
                   void* argument) {
  if (armed && kind == Kind::thread && strikes(false, "pthread_create", "")) return EAGAIN;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  starting_a_thread = true;
  const int error = next<Create>("pthread_create")(thread, attributes, body, argument);
  starting_a_thread = false;
  return error;
}

ssize_t write(int fd, const void* data, size_t bytes) {
  const long some = may_write("write", fd, bytes);
  return some < 0 ? some : syscall(SYS_write, fd, data, some);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  const long some = may_write("pwrite", fd, bytes);
  return some < 0 ? some : syscall(SYS_pwrite64, fd, data, some, offset);
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return static_cast<int>(open_at(AT_FDCWD, path, flags, mode));
}
int openat(int folder, const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return static_cast<int>(open_at(folder, path, flags, mode));
}

int fsync(int fd) {
  char path[4096];
  const int error = file_fails("fsync", path_of(fd, path), true);
  return static_cast<int>(error ? failing(error) : syscall(SYS_fsync, fd));
}

// The descriptor is gone even where close fails (close(2)).
int close(int fd) {
  char path[4096];
  const long flags = syscall(SYS_fcntl, fd, F_GETFL);
  const bool written = flags >= 0 && (flags & O_ACCMODE) == O_WRONLY;
  const int error = written ? file_fails("close", path_of(fd, path), true) : 0;
  const long done = syscall(SYS_close, fd);
  return static_cast<int>(error ? failing(error) : done);
}

int rename(const char* from, const char* to) {
  const int error = file_fails("rename", to, false);
  return static_cast<int>(error ? failing(error) : syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}
int mkdir(const char* path, mode_t mode) {
  const int error = file_fails("mkdir", path, true);
  return static_cast<int>(error ? failing(error) : syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
int unlink(const char* path) {
  const int error = file_fails("unlink", path, false);
  return static_cast<int>(error ? failing(error) : syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}
int rmdir(const char* path) {
  const int error = file_fails("rmdir", path, false);
  return static_cast<int>(error ? failing(error) : syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR));
}

}  // extern "C"
