#pragma once
#include <cstddef>
#include <cstdint>

namespace qlora::cuda::emulator {

// A stack of its own that the host thread switches to and from; sanitizers follow it.
class Fiber {
 public:
  Fiber() = default;  // the thread that is running, once it has switched away
  ~Fiber();
  Fiber(const Fiber&) = delete;
  // From its begin again at the next switch: enter(argument), which must not return but switch away.
  void restart(void (*enter)(void*), void* argument);
  // Goes on with `to`; returns when somebody switches to this one, which is the one that is running.
  void switch_to(Fiber& to);
  void* order() const { return order_; }  // order.h: its context

 private:
  static void arrive(void* fiber);
  static constexpr size_t kStack = 256 << 10;  // touched as far as it is used
  void* stack_ = nullptr;
  void* context_ = nullptr;
  const void* bottom_ = nullptr;  // for AddressSanitizer, of the thread's own stack too
  size_t bytes_ = 0;
  void* fake_ = nullptr;
  void* order_ = nullptr;     // ThreadSanitizer's context
  std::byte* low_ = nullptr;  // below the frames that it had when it last switched away
  Fiber* former_ = nullptr;   // who switched here
  void (*enter_)(void*) = nullptr;
  void* argument_ = nullptr;
  friend struct FiberEntry;
};

}  // namespace qlora::cuda::emulator
