#include "tools/common/main.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <initializer_list>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "kernels/common/isa.h"
#include "memory/cuda/start.h"
#include "memory/error.h"
#include "tools/common/option_help.h"
#include "tools/common/signals.h"

namespace qlora::tools {
namespace {

// A file opened later must not become stdout or stderr because the caller closed those.
void fill_standard_descriptors() {
  for (int fd = 0; fd < 3; ++fd)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) _exit(5);
}

// The first of the threads that fail goes on; the others wait for the end that it makes.
std::atomic_flag failed;
void be_first_to_fail() {
  while (failed.test_and_set()) pause();
}

// One line on stderr, whatever the parts hold. Allocates nothing: there may be no memory left.
int report(const char* program, std::initializer_list<const char*> parts, Category category) {
  be_first_to_fail();
  std::cout.flush();
  std::cerr << program << ": error: ";
  for (const char* part : parts)
    for (; *part != 0; ++part) std::cerr << (*part == '\n' || *part == '\r' ? ' ' : *part);
  std::cerr << std::endl;
  return static_cast<int>(category);
}

// ---- memory that ran out where nothing may be thrown ----
// Destructors that allocate (nlohmann::json's, libstdc++'s folder iterators) end in std::terminate. What is
// on disk is whole at any moment, so leaving at once costs nothing.

const char* program_name_for_handlers = "";
std::atomic<bool> out_of_memory{false};
constexpr const char* kOutOfMemory = "out of memory; free some, or give smaller settings";

void on_failed_new() {
  out_of_memory = true;
  throw std::bad_alloc();
}

void on_terminate() {
  if (!out_of_memory) std::abort();
  be_first_to_fail();
  for (const char* part : {program_name_for_handlers, ": error: ", kOutOfMemory, "\n"})
    if (write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  _exit(static_cast<int>(Category::memory));
}

void install_memory_handlers(const char* program) {
  program_name_for_handlers = program;
  failed.clear();
  std::set_new_handler(on_failed_new);
  std::set_terminate(on_terminate);
}

// The last part of argv[0].
const char* program_name(int argc, char** argv) {
  if (argc < 1) return "qlora";
  const char* slash = std::strrchr(argv[0], '/');
  return slash ? slash + 1 : argv[0];
}

int help_columns() {
  winsize size{};
  if (ioctl(1, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<int>(size.ws_col, 60, 110);
}

bool answered(const Table& table, const Build& build, Options::Request request) {
  switch (request) {
    case Options::Request::run:
      return false;
    case Options::Request::help:
      std::cout << help_text(table, help_columns());
      break;
    case Options::Request::version:
      std::cout << version_text(table, build) << "\n";
      break;
    case Options::Request::man:
      std::cout << man_page(table, QLORA_VERSION);
      break;
    case Options::Request::bash_completion:
      std::cout << bash_completion(table);
      break;
  }
  return true;
}

void finish_stdout() {
  std::cout.flush();
  const bool failed = !std::cout || std::fflush(stdout) != 0 || std::ferror(stdout);
  if (failed && !stdout_reader_left())
    fail(Category::io, "stdout: writing the result failed; check the space left where it goes");
}

}  // namespace

Build this_build() {
  return {[] { return std::string(name_of(active_isa())); }, cuda::version_text(cuda::runtime_version())};
}

std::string version_text(const Table& table, const Build& build) {
#if defined(__clang__)
  const std::string compiler =
      cat("Clang ", __clang_major__, ".", __clang_minor__, ".", __clang_patchlevel__);
#else
  const std::string compiler = cat("GCC ", __GNUC__, ".", __GNUC_MINOR__, ".", __GNUC_PATCHLEVEL__);
#endif
  return cat(table.program, " ", QLORA_VERSION, " (", QLORA_BUILD_TYPE, ", ", compiler, ", ISA ", build.isa(),
             ", CUDA ", build.cuda.empty() ? "not built" : build.cuda, ")");
}

void print_json(const nlohmann::ordered_json& result) {
  // Text of a model may be no UTF-8; a replaced character is better than no result.
  std::cout << result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
}

bool stdout_reader_left() {
  pollfd out{1, POLLOUT, 0};
  return poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
}

int run_tool(int argc, char** argv, const Table& (*table_of)(), const Build& build,
             const std::function<int(Options&)>& body) {
  fill_standard_descriptors();
  install_signal_handlers();
  const char* program = program_name(argc, argv);
  install_memory_handlers(program);
  try {
    const Table& table = table_of();
    Options options =
        parse_options(table, {argv + std::min(argc, 1), argv + argc}, {.cuda = !build.cuda.empty()});
    const int code = answered(table, build, options.request()) ? 0 : body(options);
    finish_stdout();
    return code;
  } catch (const Error& error) {
    return report(program, {error.what()}, error.category());
  } catch (const std::bad_alloc&) {
    return report(program, {kOutOfMemory}, Category::memory);
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::not_enough_memory)
      return report(program, {kOutOfMemory}, Category::memory);
    const std::string reason = error.code().message();
    if (const auto* at = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
      return report(program,
                    {at->path1().c_str(), ": the system failed: ", reason.c_str(), "; check its permissions"},
                    Category::io);
    return report(program, {"the system failed: ", error.what(), "; see what it lacks, and run again"},
                  Category::io);
  } catch (const std::exception& error) {
    return report(program, {"internal error: ", error.what(), "; please report it with the command"},
                  Category::internal);
  }
}

}  // namespace qlora::tools
