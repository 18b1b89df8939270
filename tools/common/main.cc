#include "tools/common/main.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

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

int report(const Table& table, std::string line, int code) {
  for (char& c : line)
    if (c == '\n' || c == '\r') c = ' ';
  std::cout.flush();
  std::cerr << table.program << ": error: " << line << std::endl;
  return code;
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

int run_tool(int argc, char** argv, const Table& table, const Build& build,
             const std::function<int(Options&)>& body) {
  fill_standard_descriptors();
  install_signal_handlers();
  try {
    Options options =
        parse_options(table, {argv + std::min(argc, 1), argv + argc}, {.cuda = !build.cuda.empty()});
    const int code = answered(table, build, options.request()) ? 0 : body(options);
    finish_stdout();
    return code;
  } catch (const Error& error) {
    return report(table, error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return report(table, "out of memory; free some, or give smaller settings",
                  static_cast<int>(Category::memory));
  } catch (const std::system_error& error) {
    return report(table, cat("the system failed: ", error.what()), static_cast<int>(Category::io));
  } catch (const std::exception& error) {
    return report(table, cat("internal error: ", error.what(), "; please report it with the command"),
                  static_cast<int>(Category::internal));
  }
}

}  // namespace qlora::tools
