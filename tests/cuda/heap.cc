// The heap of test_cuda. The kernels' tests hand ops what lies in vectors: here all of that is memory that
// host and card both reach. (Under WSL 2 a host may not touch managed memory while a kernel runs: there these
// tests cannot run.)
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "memory/cuda/start.h"

namespace {

// Before main: registered with the card when the tests begin.
alignas(4096) std::array<std::byte, size_t{32} << 20> early;

// Blocks of powers of two out of managed memory, a header before each; what is freed is kept for its size.
class Heap {
 public:
  void* allocate(size_t bytes, size_t align) {
    if (growing) return foreign(bytes, align);
    const std::lock_guard lock(mutex_);
    const auto size_class = static_cast<size_t>(std::bit_width(bytes + align + sizeof(Header) - 1));
    if (size_class >= free_.size()) throw std::bad_alloc();
    std::byte* block = free_[size_class];
    if (block != nullptr)
      free_[size_class] = reinterpret_cast<Header*>(block)->next;
    else
      block = carve(size_t{1} << size_class);
    const auto at = (reinterpret_cast<uintptr_t>(block) + sizeof(Header) + align - 1) / align * align;
    auto* const header = reinterpret_cast<Header*>(at) - 1;
    *header = {block, size_class};
    return reinterpret_cast<void*>(at);
  }
  void release(void* p) {
    const Header header = *(static_cast<Header*>(p) - 1);
    if (header.size_class == kForeign) return std::free(header.next);
    const std::lock_guard lock(mutex_);
    reinterpret_cast<Header*>(header.next)->next = free_[header.size_class];
    free_[header.size_class] = header.next;
  }
  // From here on more room is the card's.
  void start() { managed_ = true; }

 private:
  // Of a block in use: its beginning and size; of a free one: the next.
  struct alignas(16) Header {
    std::byte* next;
    size_t size_class;
  };
  static constexpr size_t kForeign = SIZE_MAX;
  // While this thread asks CUDA for more: a library of C++ that takes part in it may want room of its own.
  static inline thread_local bool growing = false;
  static void* foreign(size_t bytes, size_t align) {
    void* const block = std::malloc(bytes + align + sizeof(Header));
    if (block == nullptr) throw std::bad_alloc();
    const auto at = (reinterpret_cast<uintptr_t>(block) + sizeof(Header) + align - 1) / align * align;
    *(reinterpret_cast<Header*>(at) - 1) = {static_cast<std::byte*>(block), kForeign};
    return reinterpret_cast<void*>(at);
  }

  std::byte* carve(size_t bytes) {
    if (static_cast<size_t>(end_ - begin_) < bytes) {
      if (!managed_)
        std::fputs("test_cuda: too much is allocated before the tests begin\n", stderr), std::abort();
      const size_t chunk = std::max(bytes, size_t{64} << 20);
      void* p = nullptr;
      growing = true;
      const cudaError_t error = cudaMallocManaged(&p, chunk);
      growing = false;
      if (error != cudaSuccess) {
        std::fprintf(stderr, "test_cuda: managed memory of %zu bytes: %s\n", chunk,
                     cudaGetErrorString(error));
        throw std::bad_alloc();
      }
      begin_ = static_cast<std::byte*>(p);
      end_ = begin_ + chunk;
    }
    begin_ += bytes;
    return begin_ - bytes;
  }
  std::mutex mutex_;
  std::array<std::byte*, 48> free_ = {};
  std::byte *begin_ = early.data(), *end_ = early.data() + early.size();
  bool managed_ = false;
};

Heap& heap() {
  alignas(Heap) static std::array<std::byte, sizeof(Heap)> place;  // outlives everything that frees
  static Heap* const h = new (place.data()) Heap;
  return *h;
}

class Start : public testing::Environment {
 public:
  void SetUp() override {
    if (!qlora::cuda::refusal(qlora::cuda::find(0), 0).empty()) return;  // card.cc says so
    const cudaError_t error = cudaHostRegister(early.data(), early.size(), cudaHostRegisterPortable);
    ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
    heap().start();
  }
};
[[maybe_unused]] testing::Environment* const start = testing::AddGlobalTestEnvironment(new Start);

}  // namespace

// The driver takes its memory back as it ends, and what static objects hold lies there: none is destroyed.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  std::fflush(nullptr);
  std::_Exit(result);
}

void* operator new(size_t bytes) { return heap().allocate(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t align) {
  return heap().allocate(bytes, std::max(static_cast<size_t>(align), size_t{16}));
}
void operator delete(void* p) noexcept {
  if (p != nullptr) heap().release(p);
}
void operator delete(void* p, size_t) noexcept { operator delete(p); }
void operator delete(void* p, std::align_val_t) noexcept { operator delete(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { operator delete(p); }
