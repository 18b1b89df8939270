// The emulator: that its operations are CUDA's, and that each thing it promises to see is seen. Kernels here
// are as in a *_cuda.cu file.
#include "kernels/cuda/emulator.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/reduce.h"
#include "memory/cuda/emulated.h"

namespace qlora::cuda {
namespace {

template <class Body>
struct Kernel {
  static constexpr int kThreads = 64;
  static constexpr size_t kShared = 1 << 20;  // at most; each launch says
  Body body;
  QLORA_DEVICE void operator()(SharedMemory shared) const { body(shared); }
};

// What the device says about one launch of the body, "" if nothing.
template <class Body>
std::string said(const Body& body, int variant, size_t shared_bytes = 4096, Grid grid = {1}) {
  emulate({});
  emulator::variant = variant;
  std::string out;
  {
    Exec e({DeviceKind::cuda, 0}, 1, nullptr);
    launch(e, grid, shared_bytes, Kernel<Body>{body});
    try {
      e.stream().synchronize();
    } catch (const Error& error) {
      out = error.what();
    }
  }
  emulate({});
  return out;
}

// The body breaks the device in every variant, and is told by `words` and by this file.
template <class Body>
void expect_fault(const Body& body, const char* words) {
  for (int v = 0; v < emulator::kVariants; ++v) {
    const std::string text = said(body, v);
    EXPECT_NE(text.find(words), std::string::npos) << text;
    EXPECT_NE(text.find("emulator_test.cc:"), std::string::npos) << text;
  }
}
template <class Body>
void expect_fine(const Body& body, size_t shared_bytes = 4096, Grid grid = {1}) {
  for (int v = 0; v < emulator::kVariants; ++v) EXPECT_EQ(said(body, v, shared_bytes, grid), "");
}

TEST(Emulator, EveryThreadOfEveryBlockOnce) {
  std::vector<int> seen(3 * 2 * 64);
  int* const p = seen.data();
  expect_fine([=](SharedMemory) { ++p[(block_y() * 3 + block_x()) * 64 + warp() * 32 + lane()]; }, 0, {3, 2});
  for (int n : seen) EXPECT_EQ(n, emulator::kVariants);
}

TEST(Emulator, BarrierAndSharedMemory) {
  std::vector<int> out(64);
  int* const p = out.data();
  expect_fine([=](SharedMemory shared) {
    const Shared<int> s = shared.take<int>(64);
    for (int round = 0; round < 3; ++round) {
      s[thread()] = thread() + round;
      barrier();
      p[thread()] = s[63 - thread()];
      barrier();
    }
  });
  for (int t = 0; t < 64; ++t) EXPECT_EQ(out[t], 63 - t + 2);
}

TEST(Emulator, WarpOperations) {
  std::vector<float> out(64);
  float* const p = out.data();
  expect_fine([=](SharedMemory shared) {
    const Shared<float> s = shared.take<float>(64);
    const float sum = warp_sum(static_cast<float>(lane()));
    const double next = shuffle(static_cast<double>(thread()), lane() + 1);
    s[thread()] = sum + static_cast<float>(next);
    warp_barrier();
    p[thread()] = s[thread() ^ 1];
  });
  for (int t = 0; t < 64; ++t) EXPECT_EQ(out[t ^ 1], 496.f + static_cast<float>(t / 32 * 32 + (t + 1) % 32));
}

TEST(Emulator, BlockReductions) {
  std::vector<float> out(128);
  float* const p = out.data();
  expect_fine([=](SharedMemory shared) {
    const Shared<float> s = shared.take<float>(2);
    p[thread()] = block_sum<64>(static_cast<float>(thread()), s);
    p[thread() + 64] = block_max<64>(static_cast<float>(thread() * 7 % 64), s);
  });
  for (int t = 0; t < 64; ++t) EXPECT_EQ(out[t], 2016.f);
  for (int t = 64; t < 128; ++t) EXPECT_EQ(out[t], 63.f);
}

// c [16, 8] = a [16, 16] b [16, 8] through both loads: a as it lies; b [k, n] transposed, or b^T [n, k] as it
// lies.
TEST(Emulator, MatricesAsPtxLaysThemOut) {
  std::vector<bf16> a(16 * 16), b(16 * 8), bt(8 * 16);
  std::vector<float> expected(16 * 8, 0.f);
  for (int i = 0; i < 256; ++i) a[i] = bf16(static_cast<float>(i * 7 % 23 - 11));
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 8; ++n)
      b[k * 8 + n] = bt[n * 16 + k] = bf16(static_cast<float>((k * 8 + n) * 5 % 19 - 9));
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n)
        expected[m * 8 + n] += static_cast<float>(a[m * 16 + k]) * static_cast<float>(b[k * 8 + n]);
  std::vector<float> out(2 * 128);
  const bf16 *pa = a.data(), *pb = b.data(), *pbt = bt.data();
  float* const p = out.data();
  expect_fine([=](SharedMemory shared) {
    const Shared<bf16> sa = shared.take<bf16>(256), sb = shared.take<bf16>(128), sbt = shared.take<bf16>(128);
    for (int i = thread(); i < 256; i += 64) sa[i] = pa[i];
    for (int i = thread(); i < 128; i += 64) {
      sb[i] = pb[i];
      sbt[i] = pbt[i];
    }
    barrier();
    uint32_t fa[4], fb[4], fbt[4];
    load_matrices(fa, sa, lane() % 16 * 16 + lane() / 16 * 8);
    load_matrices_transposed(fb, sb, lane() % 16 * 8);
    load_matrices(fbt, sbt, lane() % 8 * 16 + lane() / 8 % 2 * 8);
    float c[4] = {}, d[4] = {};
    mma_bf16(c, fa, fb[0], fb[1]);
    mma_bf16(d, fa, fbt[0], fbt[1]);
    if (warp() == 1) return;
    for (int i = 0; i < 4; ++i) {
      const int at = (lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2;
      p[at] = c[i];
      p[128 + at] = d[i];
    }
  });
  for (int i = 0; i < 128; ++i) {
    EXPECT_EQ(out[i], expected[i]);  // whole numbers: exact in any order
    EXPECT_EQ(out[128 + i], expected[i]);
  }
}

alignas(16) const float kNumbers[8] = {1, 2, 3, 4, 5, 6, 7, 8};

TEST(Emulator, AsynchronousCopies) {
  std::vector<float> out(64);
  float* const p = out.data();
  expect_fine([=](SharedMemory shared) {
    const Shared<float> s = shared.take<float>(12);
    if (thread() == 0) {
      copy_async16(s, 0, kNumbers, 16);
      commit_copies();
      copy_async16(s, 4, kNumbers + 4, 12);
      copy_async16(s, 8, nullptr, 0);
      commit_copies();
      wait_copies<1>();
      s[0] += 10;
      wait_copies<0>();
    }
    barrier();
    p[thread()] = s[thread() % 12];
  });
  const std::vector<float> expected = {11, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0};
  for (int t = 0; t < 64; ++t) EXPECT_EQ(out[t], expected[t % 12]);
}

TEST(Emulator, SeesAMissingBarrier) {
  expect_fault(
      [](SharedMemory shared) {
        const Shared<int> s = shared.take<int>(64);
        s[thread()] = 1;
        if (s[63 - thread()] == 3) s[0] = 2;
      },
      "shared memory read ");
}

TEST(Emulator, SeesAMissingBarrierAfterReads) {
  expect_fault(
      [](SharedMemory shared) {
        const Shared<int> s = shared.take<int>(64);
        s[thread()] = 1;
        barrier();
        if (s[63 - thread()] == 3) return;
        s[thread()] = 2;
      },
      "with no barrier since it was");
  const auto writes_last = [](SharedMemory shared) {
    const Shared<int> s = shared.take<int>(64);
    s[thread()] = 1;
    barrier();
    if (warp() == 1)
      s[thread()] = 2;
    else if (s[thread() + 32] == 3)
      s[0] = 2;
  };
  EXPECT_NE(said(writes_last, 0).find("written with no barrier since it was read by"), std::string::npos);
}

TEST(Emulator, SeesTwoWriters) {
  expect_fault([](SharedMemory shared) { shared.take<int>(1)[0] = 1; },
               "written with no barrier since it was written");
}

TEST(Emulator, SeesAMissingBarrierOfTheWarp) {
  expect_fault(
      [](SharedMemory shared) {
        const Shared<int> s = shared.take<int>(64);
        s[thread()] = 1;
        shuffle(1, 0);  // orders no memory
        if (s[thread() ^ 1] == 3) s[0] = 2;
      },
      "read with no barrier since it was written by");
}

// A lane that reads what all lanes read, and then writes it, is ordered after its own read alone.
TEST(Emulator, SeesAMissingBarrierOfTheWarpAfterReads) {
  const auto kernel = [](bool with) {
    return [with](SharedMemory shared) {
      const Shared<int> s = shared.take<int>(64);
      s[thread()] = 1;
      barrier();
      const int read = s[warp() * 32], all = shuffle(read, 0);  // orders no memory
      if (with) warp_barrier();
      if (lane() == 0 && s[thread()] == all) s[thread()] = 2;
    };
  };
  expect_fault(kernel(false), "written with no barrier since it was read by several threads");
  expect_fine(kernel(true));
}

TEST(Emulator, SeesAMissingWait) {
  expect_fault(
      [](SharedMemory shared) {
        const Shared<float> s = shared.take<float>(4);
        if (thread() != 0) return;
        copy_async16(s, 0, kNumbers, 16);
        commit_copies();
        if (s[0] == 3) s[1] = 2;
      },
      "before a copy to it was waited for");
  expect_fault(
      [](SharedMemory shared) {
        const Shared<float> s = shared.take<float>(4);
        if (thread() == 0) copy_async16(s, 0, kNumbers, 16);
      },
      "never waited for");
}

TEST(Emulator, SeesWhatNobodyWrote) {
  expect_fault(
      [](SharedMemory shared) {
        const Shared<int> s = shared.take<int>(64);
        if (s[thread()] == 3) s[0] = 1;
      },
      "that nobody has written");
}

TEST(Emulator, SeesWhatIsOutside) {
  expect_fault([](SharedMemory shared) { shared.take<int>(63)[thread()] = 1; }, "element 63 of 63");
  expect_fault([](SharedMemory shared) { shared.take<int>(64)[thread() - 1] = 1; }, "element -1 of 64");
  expect_fault([](SharedMemory shared) { shared.take<int>(1025); },
               "4112 bytes of shared memory are taken, 4096");
}

TEST(Emulator, SeesWhatIsOffItsAlignment) {
  expect_fault([](SharedMemory shared) { copy_async16(shared.take<float>(8), 1, kNumbers, 16); },
               "off its alignment");
  expect_fault([](SharedMemory shared) { copy_async16(shared.take<float>(8), 0, kNumbers, 24); },
               "of no 0 to 16 bytes");
  expect_fault(
      [](SharedMemory shared) {
        uint32_t r[4];
        load_matrices(r, shared.take<bf16>(512), lane() * 8 + 4);
      },
      "off their alignment");
}

TEST(Emulator, SeesThreadsThatDoNotCome) {
  const auto half = [](SharedMemory) {
    if (lane() < 16) shuffle(1, 0);
  };
  expect_fault(half, "threads wait for others that do not come:");
  expect_fault(half, "from thread 0: shuffle at ");
  expect_fault(
      [](SharedMemory) {
        if (thread() != 5) barrier();
      },
      "from thread 5: ended");
  expect_fault(
      [](SharedMemory) {
        if (warp() == 0)
          barrier();
        else
          barrier();
      },
      "at different barriers");
  expect_fault(
      [](SharedMemory) {
        if (lane() < 16)
          shuffle(1, 0);
        else
          shuffle(2, 0);
      },
      "where the warp's others are in shuffle");
}

TEST(Emulator, RefusesLaunchesThatNoCardTakes) {
  Exec e({DeviceKind::cuda, 0}, 1, nullptr);
  const auto body = [](SharedMemory) {};
  EXPECT_THROW(launch(e, {1}, kMostSharedBytes + 1, Kernel<decltype(body)>{body}), Error);
  EXPECT_THROW(launch(e, {1, 65536}, 0, Kernel<decltype(body)>{body}), Error);
}

// Whatever card the thread used last, and from a thread that has used none.
TEST(Emulator, LaunchesGoToTheStreamsDevice) {
  Exec e({DeviceKind::cuda, 1}, 1, nullptr);
  std::vector<int> seen(64);
  const auto put = [&] {
    const auto body = [p = seen.data()](SharedMemory) { ++p[thread()]; };
    launch(e, {1}, 0, Kernel<decltype(body)>{body});
  };
  make_current(0);
  EXPECT_NO_THROW(put());
  make_current(0);
  std::thread([&] { EXPECT_NO_THROW(put()); }).join();
  e.stream().synchronize();
  EXPECT_EQ(seen, std::vector<int>(64, 2));
  make_current(0);
}

TEST(Emulator, RefusesWhatNoCardReaches) {
  alignas(256) static float variable[64];
  alignas(256) float local[64];
  std::vector<float> heap(64);
  Exec e({DeviceKind::cuda, 0}, 1, nullptr);
  const auto put = [&](float* p) {
    const auto body = [p](SharedMemory) { p[thread()] = 1; };
    launch(e, {1}, 0, Kernel<decltype(body)>{body});
  };
  // What lies at a round address is taken for a number.
  EXPECT_THROW(put(variable + 31), Error);
  EXPECT_THROW(put(local + 31), Error);
  EXPECT_NO_THROW(put(heap.data()));
  e.stream().synchronize();
}

}  // namespace
}  // namespace qlora::cuda
