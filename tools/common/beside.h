#pragma once
#include <future>
#include <system_error>

namespace qlora::tools {

// f on a thread of its own; when it is asked for without `own`, or where the system has no room for a thread.
template <class F>
auto beside(bool own, F f) {
  try {
    return std::async(own ? std::launch::async : std::launch::deferred, f);
  } catch (const std::system_error&) {
    return std::async(std::launch::deferred, f);
  }
}

}  // namespace qlora::tools
