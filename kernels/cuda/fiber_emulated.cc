#include "kernels/cuda/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <new>

#include "kernels/cuda/order.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace qlora::cuda::emulator {

// AddressSanitizer must know which stack it is on.
#if defined(__SANITIZE_ADDRESS__)
namespace {
void leave(void** fake, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake, bottom, bytes);
}
void enter(void* fake, const void** bottom, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake, bottom, bytes);
}
// Frames that nobody will return from: what was out of scope in them is no more.
void drop_frames(const std::byte* low, const std::byte* top) {
  __asan_unpoison_memory_region(low, static_cast<size_t>(top - low));
}
}  // namespace
#else
namespace {
void leave(void**, const void*, size_t) {}
void enter(void*, const void**, size_t*) {}
void drop_frames(const std::byte*, const std::byte*) {}
}  // namespace
#endif

struct FiberEntry {
  static void begin(Fiber* self) {
    Fiber::arrive(self);
    self->enter_(self->argument_);
  }
};

// The switch itself: swapcontext calls the system each time to keep the signal mask, ten times as long as the
// rest.
#if defined(__x86_64__)
extern "C" void qlora_fiber_switch(void** from, void* to);
extern "C" void qlora_fiber_begin(Fiber* self) { FiberEntry::begin(self); }
asm(R"(
.text
.globl qlora_fiber_switch
.type qlora_fiber_switch, @function
qlora_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qlora_fiber_switch, .-qlora_fiber_switch
.type qlora_fiber_first, @function
qlora_fiber_first:
  .cfi_startproc
  .cfi_undefined rip
  movq %rbx, %rdi
  call qlora_fiber_begin
  ud2
  .cfi_endproc
.size qlora_fiber_first, .-qlora_fiber_first
)");
extern "C" void qlora_fiber_first();

namespace {
// As if it had switched away just before its first instruction; rbx is the argument.
void* first_context(std::byte* top, Fiber* self, void*) {
  void** sp = reinterpret_cast<void**>(top) - 2;
  *--sp = reinterpret_cast<void*>(&qlora_fiber_first);
  *--sp = nullptr;  // rbp
  *--sp = self;     // rbx
  for (int i = 0; i < 4; ++i) *--sp = nullptr;
  return sp;
}
void go(void** from, void* to) { qlora_fiber_switch(from, to); }
void forget(void*) {}
}  // namespace
#else
namespace {
void begin(unsigned high, unsigned low) {
  FiberEntry::begin(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low));
}
void* first_context(std::byte* top, Fiber* self, void* former) {
  auto* c = former != nullptr ? static_cast<ucontext_t*>(former) : new ucontext_t;
  getcontext(c);
  constexpr size_t kUsed = 64 << 10;
  c->uc_stack.ss_sp = top - kUsed;
  c->uc_stack.ss_size = kUsed;
  c->uc_link = nullptr;
  const auto bits = reinterpret_cast<uintptr_t>(self);
  makecontext(c, reinterpret_cast<void (*)()>(&begin), 2, static_cast<unsigned>(bits >> 32),
              static_cast<unsigned>(bits));
  return c;
}
void go(void** from, void* to) {
  if (*from == nullptr) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
void forget(void* context) { delete static_cast<ucontext_t*>(context); }
}  // namespace
#endif

Fiber::~Fiber() {
  forget(context_);
  if (stack_ == nullptr) return;
  order::destroy(order_);
  munmap(stack_, kStack);
}

void Fiber::restart(void (*enter)(void*), void* argument) {
  if (stack_ == nullptr) {
    stack_ =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack_, 4096, PROT_NONE);  // who goes over the stack's end faults
    bottom_ = stack_;
    bytes_ = kStack;
    order_ = order::create();
  }
  std::byte* const top = static_cast<std::byte*>(stack_) + kStack;
  drop_frames(low_ != nullptr ? low_ : top, top);
  enter_ = enter;
  argument_ = argument;
  fake_ = nullptr;
  context_ = first_context(top, this, context_);
}

void Fiber::arrive(void* fiber) {
  auto* const self = static_cast<Fiber*>(fiber);
  enter(self->fake_, &self->former_->bottom_, &self->former_->bytes_);
}

void Fiber::switch_to(Fiber& to) {
  constexpr size_t kOwnFrames = 1024;  // of the switch itself
  low_ = static_cast<std::byte*>(__builtin_frame_address(0)) - kOwnFrames;
  to.former_ = this;
  leave(&fake_, to.bottom_, to.bytes_);
  if (stack_ == nullptr) order_ = order::current();
  order::switch_to(to.order_);
  go(&context_, to.context_);
  arrive(this);
}

}  // namespace qlora::cuda::emulator
