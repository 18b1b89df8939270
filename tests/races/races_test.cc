// That ThreadSanitizer, as tests/races has it, sees the races that kernels can have over memory, names both
// lines, and sees none where there is an order. Kernels here are as in a *_cuda.cu file; kFirst and kSecond
// are the lines that race.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/device.h"
#include "memory/cuda/emulated.h"

namespace qlora::cuda {
namespace {

template <class Body>
struct Kernel {
  static constexpr int kThreads = 64;
  static constexpr size_t kShared = 1024;
  Body body;
  QLORA_DEVICE void operator()(SharedMemory shared) const { body(shared); }
};

struct Neighbour {
  static constexpr int kFirst = __LINE__ + 4, kSecond = __LINE__ + 6;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory) const {
    p[thread()] = 1;
    if (ordered) barrier();
    p[128 + thread()] = p[thread() ^ 1];
  }
};
struct NeighbourInWarp {
  static constexpr int kFirst = __LINE__ + 4, kSecond = __LINE__ + 7;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory) const {
    p[thread()] = 1;
    shuffle(1, 0);  // orders no memory
    if (ordered) warp_barrier();
    p[128 + thread()] = p[thread() ^ 1];
  }
};
struct OtherWarp {
  static constexpr int kFirst = __LINE__ + 4, kSecond = __LINE__ + 6;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory) const {
    p[thread()] = 1;
    ordered ? barrier() : warp_barrier();
    p[128 + thread()] = p[thread() ^ 32];
  }
};
// Barriers of a block order nothing between blocks.
struct NextBlock {
  static constexpr int kFirst = __LINE__ + 5, kSecond = __LINE__ + 7;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory) const {
    barrier();
    p[block_x() * 64 + thread()] = 1;
    barrier();
    p[2048 + block_x() * 64 + thread()] = p[(ordered ? block_x() : block_x() ^ 1) * 64 + thread()];
  }
};
// As a launch whose blocks add to one sum.
struct OneResult {
  static constexpr int kFirst = __LINE__ + 4, kSecond = kFirst;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory) const {
    if (thread() == 0) p[ordered ? block_x() : 0] += 1;
  }
};
struct InShared {
  static constexpr int kFirst = __LINE__ + 5, kSecond = __LINE__ + 7;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<int> s = shared.take<int>(64);
    s[thread()] = 1;
    if (ordered) barrier();
    p[block_x() * 64 + thread()] = s[thread() == 0 ? 0 : thread() - 1];
  }
};
struct CopiedFrom {
  static constexpr int kFirst = __LINE__ + 5, kSecond = __LINE__ + 7;
  int* p;
  bool ordered;
  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<int> s = shared.take<int>(256);
    p[thread()] = 1;
    if (ordered) barrier();
    copy_async16(s, 4 * thread(), p + thread() / 4 * 4, 16);
    commit_copies();
    wait_copies<0>();
  }
};

// On memory of the test's own; ends as a program under ThreadSanitizer does. What the emulator says of the
// launches is of no interest here.
template <class Body>
[[noreturn]] void run(bool ordered, int blocks, int launches) {
  emulate({});
  std::vector<int> memory(4096 + 4);
  int* const p = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16 / 4;
  {
    Exec e({DeviceKind::cuda, 0}, 1, nullptr);
    for (int i = 0; i < launches; ++i) launch(e, {blocks}, 1024, Kernel<Body>{{p, ordered}});
    try {
      e.stream().synchronize();
    } catch (const Error&) {
    }
  }
  std::exit(0);
}

constexpr int kRaced = 66;  // ThreadSanitizer's exit code

// Races where nothing orders it, and then only; the report has both lines.
template <class Body>
void expect_race(int blocks) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto at = [](int line) { return "races_test.cc:" + std::to_string(line) + " "; };
  const auto report = [&](int one, int other) { return at(one) + "[^~]*Previous [^~]*" + at(other); };
  EXPECT_EXIT(run<Body>(false, blocks, 1), testing::ExitedWithCode(kRaced),
              "data race .pid=[^~]*(" + report(Body::kFirst, Body::kSecond) + "|" +
                  report(Body::kSecond, Body::kFirst) + ")");
  EXPECT_EXIT(run<Body>(true, blocks, 2), testing::ExitedWithCode(0), "^$");
}

TEST(RacesDeathTest, ThreadsOfABlock) { expect_race<Neighbour>(1); }
TEST(RacesDeathTest, ThreadsOfAWarp) { expect_race<NeighbourInWarp>(1); }
TEST(RacesDeathTest, WarpsOfABlock) { expect_race<OtherWarp>(1); }
TEST(RacesDeathTest, BlocksOfALaunch) {
  expect_race<NextBlock>(16);
  expect_race<OneResult>(16);
}
TEST(RacesDeathTest, SharedMemory) { expect_race<InShared>(16); }
TEST(RacesDeathTest, AsynchronousCopies) { expect_race<CopiedFrom>(1); }

// A kernel on one stream, a copy of its result on another, which waits for it or not.
[[noreturn]] void copy_elsewhere(bool ordered) {
  emulate({});
  std::vector<int> memory(4096), result(64);
  {
    Exec e({DeviceKind::cuda, 0}, 1, nullptr);
    Stream other(0);
    Event event(0);
    launch(e, {1}, 1024, Kernel<Neighbour>{{memory.data(), true}});
    if (ordered) {
      event.record(e.stream());
      other.wait(event);
    }
    other.copy(result.data(), memory.data(), 64 * sizeof(int));
    other.synchronize();
    e.stream().synchronize();
  }
  std::exit(0);
}
TEST(RacesDeathTest, Streams) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(copy_elsewhere(false), testing::ExitedWithCode(kRaced), "data race");
  EXPECT_EXIT(copy_elsewhere(true), testing::ExitedWithCode(0), "^$");
}

}  // namespace
}  // namespace qlora::cuda
