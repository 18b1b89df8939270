// The pager's CUDA backends, on the emulated device.
#include "memory/page_cuda.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <thread>

#include "memory/cuda/emulated.h"
#include "tests/memory/pager_schedule.h"

namespace qlora::testing {
namespace {

CudaPages pages_of(const PagerSchedule& s, cuda::Stream& compute) {
  return {&compute, s.pages, s.page_bytes, s.slots};
}

// Pinned memory for everything, for some, and for nothing but the staging buffers; and managed memory.
TEST(PageCuda, RandomSchedulesAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    const PagerSchedule s(seed, 1000, Pager::Life::lasting);
    const size_t page = PageBackend::kPageAlign, slots = static_cast<size_t>(s.slots);
    for (const size_t budget : {SIZE_MAX, (slots + s.pages / 2) * page, slots * page}) {
      cuda::emulate({.seed = seed});
      cuda::Stream compute(0);
      PagerRun run(
          s, [&](const PagerSchedule& p) { return pinned_pages(pages_of(p, compute), budget); },
          [&] { compute.synchronize(); });
      run.passes(2);
    }
    cuda::emulate({.seed = seed});
    cuda::Stream compute(0);
    PagerRun(
        s,
        [&](const PagerSchedule& p) {
          std::string why;
          return managed_pages(pages_of(p, compute), why);
        },
        [&] { compute.synchronize(); })
        .passes(2);
    if (HasFailure()) return;
  }
}

// The computation is a stream too, and the host runs ahead of it: only events keep the order.
struct Counting {
  static constexpr uint32_t kPages = 7;
  static constexpr size_t kBytes = 3000;
  struct Task {
    std::byte* data;
    int expected;
    int* wrong;
  };
  std::deque<Task> tasks;  // stable addresses
  int wrong = 0;
  // Every page: all bytes are `pass`; adds one.
  void pass(Pager& pager, Exec& e, cuda::Stream* compute, int number) {
    Pager::Pass pass(pager, e);
    for (uint32_t p = 0; p < kPages; ++p) {
      std::byte* const data = pass.acquire(p, kBytes, Access::update);
      if (compute != nullptr) {
        tasks.push_back({data, number, &wrong});
        compute->call(
            [](void* argument) {
              const Task& t = *static_cast<Task*>(argument);
              for (size_t i = 0; i < kBytes; ++i) {
                *t.wrong += t.data[i] != static_cast<std::byte>(t.expected);
                t.data[i] = static_cast<std::byte>(t.expected + 1);
              }
            },
            &tasks.back());
      }
      pass.release(p);
    }
    pass.end();
  }
};

void expect_joined(cuda::StreamOrder order) {
  const size_t page = PageBackend::kPageAlign;
  for (const int slots : {1, 2, 3})
    for (const size_t budget : {SIZE_MAX, (static_cast<size_t>(slots) + 3) * page}) {
      cuda::emulate({.seed = static_cast<uint64_t>(slots), .order = order});
      cuda::Stream compute(0);
      Counting counting;
      Pager pager("pages", Counting::kPages, Counting::kBytes, slots, Pager::Life::lasting);
      Trace trace("test");
      {
        Exec e = Exec::rehearsal(1);
        Phase phase(e, trace);
        counting.pass(pager, e, nullptr, 0);
      }
      trace.lay_out();
      Arena arena(trace.bytes);
      Exec e({DeviceKind::cpu, 0}, 1, arena.data());
      pager.connect(pinned_pages({&compute, Counting::kPages, Counting::kBytes, slots}, budget), {&trace});
      for (int n = 0; n < 4; ++n) {
        Phase phase(e, trace);
        compute.fill(arena.data(), 0xff, trace.bytes);  // who has the slots' memory between the passes
        counting.pass(pager, e, &compute, n);
      }
      compute.synchronize();
      EXPECT_EQ(counting.wrong, 0) << slots << " slots, order " << static_cast<int>(order);
    }
}

TEST(PageCuda, StreamsAreJoinedByEvents) {
  for (const auto order :
       {cuda::StreamOrder::threads, cuda::StreamOrder::oldest_first, cuda::StreamOrder::youngest_first})
    expect_joined(order);
}

// Whichever copy fails: one clear error, never a hang.
TEST(PageCuda, AFailedCopyIsAnError) {
  const PagerSchedule s(3, 1000, Pager::Life::lasting);
  const size_t budget = (static_cast<size_t>(s.slots) + 1) * PageBackend::kPageAlign;
  for (int64_t n = 0; n < 20; ++n) {
    cuda::emulate({.seed = 5, .fail_copy = n});
    cuda::Stream compute(0);
    PagerRun run(
        s, [&](const PagerSchedule& p) { return pinned_pages(pages_of(p, compute), budget); },
        [&] { compute.synchronize(); });
    try {
      run.passes(1);
      FAIL() << "copy " << n << " failed and nobody noticed";
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::io) << e.what();
    }
  }
  cuda::emulate({});
}

// No more than 256 MiB of pinned memory is granted: what goes beyond stays pageable, with the same bytes.
TEST(PageCuda, PinnedMemoryRefusedBeyondALimit) {
  constexpr size_t kMiB = size_t{1} << 20, kBytes = 32 * kMiB;
  cuda::emulate({.pinned_bytes = 256 * kMiB});
  cuda::Stream compute(0);
  const auto backend = pinned_pages({&compute, 10, kBytes, 2}, SIZE_MAX);
  EXPECT_NE(backend->how().find("6 of 10 pages"), std::string::npos) << backend->how();
  const cuda::Memory slot = cuda::Memory::allocate(cuda::MemoryKind::device, 0, kBytes);
  for (const bool write : {true, false})
    for (uint32_t p = 4; p < 8; ++p) {  // two on either side
      const auto value = static_cast<unsigned char>(p + 1);
      if (write) std::memset(slot.data(), value, kBytes);
      backend->start(0, {write, p, slot.data(), kBytes});
      backend->wait(0);
      compute.synchronize();
      EXPECT_EQ(slot.data()[0], std::byte{value});
      EXPECT_EQ(slot.data()[kBytes - 1], std::byte{value});
    }
}

TEST(PageCuda, RefusesWhatTheDeviceHasNot) {
  cuda::emulate({.pinned_bytes = 10000});
  cuda::Stream compute(0);
  try {
    pinned_pages({&compute, 4, 4096, 3}, SIZE_MAX);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_code(), 4);
  }
  std::string why;
  cuda::emulate({.device_bytes = 10000});
  EXPECT_EQ(managed_pages({&compute, 4, 4096, 3}, why), nullptr);
  EXPECT_NE(why.find("has 10000 free"), std::string::npos) << why;
  cuda::emulate({.concurrent_managed_access = false});
  EXPECT_EQ(managed_pages({&compute, 4, 4096, 3}, why), nullptr);
  EXPECT_NE(why.find("concurrent managed access"), std::string::npos) << why;
  cuda::emulate({});
}

// The emulator itself: what is not waited for shows.
TEST(CudaEmulator, ACopyThatIsNotWaitedForIsSeen) {
  cuda::emulate({.seed = 9});
  cuda::Stream a(0), b(0);
  cuda::Event filled(0);
  std::vector<std::byte> from(4096, std::byte{1}), to(4096), last(4096);
  b.wait(filled);  // never recorded: does not wait
  a.copy(to.data(), from.data(), 4096);
  filled.record(a);
  b.wait(filled);
  b.copy(last.data(), to.data(), 4096);
  b.synchronize();
  EXPECT_EQ(last, from);
  EXPECT_TRUE(filled.done());
  // A gate that opens late keeps what is behind it from happening.
  std::atomic<bool> open{false};
  a.call(
      [](void* gate) {
        while (!*static_cast<std::atomic<bool>*>(gate)) std::this_thread::yield();
      },
      &open);
  a.copy(to.data(), last.data(), 4096);
  filled.record(a);
  EXPECT_FALSE(filled.done());
  open = true;
  filled.synchronize();
  EXPECT_TRUE(filled.done());
}

// Where streams have an order nothing is done before the host waits, and then each is as early or as late as
// events allow: whatever one forgets shows.
TEST(CudaEmulator, StreamsInAnOrder) {
  for (const auto order : {cuda::StreamOrder::oldest_first, cuda::StreamOrder::youngest_first})
    for (const bool waits : {false, true}) {
      SCOPED_TRACE(
          cat(order == cuda::StreamOrder::oldest_first ? "oldest" : "youngest", " first, waits ", waits));
      cuda::emulate({.order = order});
      std::vector<std::byte> a(16), b(16), c(16);
      {
        cuda::Stream old(0), young(0);
        cuda::Event filled(0), copied(0);
        old.fill(a.data(), 1, 16);
        filled.record(old);
        if (waits) young.wait(filled);
        young.copy(b.data(), a.data(), 16);
        copied.record(young);
        if (waits) old.wait(copied);
        old.copy(c.data(), b.data(), 16);
        EXPECT_EQ(a[0], std::byte{0}) << "before the host waits";
        EXPECT_FALSE(filled.done());
        old.synchronize();
        EXPECT_EQ(a[0], std::byte{1});
        EXPECT_EQ(c[0], std::byte{waits}) << "too early, or of what came too early";
      }
      EXPECT_EQ(b[0], std::byte{waits || order == cuda::StreamOrder::oldest_first})
          << "ended with its stream";
    }
  cuda::emulate({});
}

}  // namespace
}  // namespace qlora::testing
