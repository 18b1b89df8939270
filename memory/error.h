#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace qlora {

// What went wrong, as the exit code that a tool ends with.
enum class Category : int {
  internal = 1,  // a broken invariant: a bug of ours
  usage = 2,     // a wrong option, a contradiction in the configuration
  input = 3,     // a file that is absent, unreadable as what it should be, or unsupported
  memory = 4,    // the budget or the machine has no room
  io = 5,        // the system failed while reading or writing
  diverged = 6,  // NaN or Inf in loss or gradient norm
};

// The one exception type. what() is one line: the file, the tensor or line, what is wrong, what to do.
class Error : public std::runtime_error {
 public:
  Error(Category category, const std::string& line) : std::runtime_error(line), category_(category) {}
  Category category() const { return category_; }
  int exit_code() const { return static_cast<int>(category_); }

 private:
  Category category_;
};

// All arguments streamed into one string.
template <class... Args>
std::string cat(Args&&... args) {
  std::ostringstream out;
  out.exceptions(std::ios_base::badbit);  // else a stream drops what it finds no memory for
  (out << ... << std::forward<Args>(args));
  return std::move(out).str();
}

template <class... Args>
[[noreturn]] void fail(Category category, Args&&... args) {
  throw Error(category, cat(std::forward<Args>(args)...));
}

// An invariant of our own: holds whatever the input is. Message parts are only rendered on failure.
template <class... Args>
void check(bool ok, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(Category::internal, std::forward<Args>(args)...);
}

}  // namespace qlora
