#include "memory/exec.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "memory/cuda/emulated.h"
#include "memory/cuda/host.h"
#include "memory/thread_pool.h"

namespace qlora {
namespace {

TEST(ThreadPool, EveryTaskOnceWhateverTheThreads) {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (int64_t tasks : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> taken(static_cast<size_t>(tasks));
      std::atomic<bool> worker_ok{true};
      auto f = [&](int64_t t, int worker) {
        ++taken[static_cast<size_t>(t)];
        if (worker < 0 || worker >= threads) worker_ok = false;
      };
      pool.run(tasks, f);
      for (auto& n : taken) ASSERT_EQ(n, 1);
      EXPECT_TRUE(worker_ok);
    }
  }
}

// Plain writes of the workers are seen after run, loop after loop: what a missing release or acquire would
// break.
TEST(ThreadPool, LoopsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> v(64, 0);
  for (int round = 0; round < 20000; ++round) {
    auto f = [&](int64_t t, int) { v[static_cast<size_t>(t)] += t; };
    pool.run(64, f);
  }
  for (int64_t t = 0; t < 64; ++t) EXPECT_EQ(v[static_cast<size_t>(t)], 20000 * t);
}

// Three phases of a step: spans of different lives share memory, those alive together do not.
TEST(Trace, LaysOutByLife) {
  Trace trace("t");
  Exec e = Exec::rehearsal(1);
  {
    Phase phase(e, trace);
    Buffer a = e.allocate(Region::activations, "a", 1000);
    { const Buffer b = e.allocate(Region::workspace, "b", 5000); }
    const Buffer c = e.allocate(Region::workspace, "c", 4000);
    a.reset();
    const Buffer d = e.allocate(Region::workspace, "d", 900);
  }
  trace.lay_out();
  EXPECT_EQ(trace.peak_live_bytes(), 1024u + 5056u);
  EXPECT_EQ(trace.bytes, trace.peak_live_bytes());
  for (const Span& s : trace.spans)
    for (const Span& o : trace.spans)
      if (&s != &o && s.born < o.died && o.born < s.died) {
        EXPECT_TRUE(s.offset + s.bytes <= o.offset || o.offset + o.bytes <= s.offset)
            << s.name << " over " << o.name;
      }
}

Trace planned() {
  Trace trace("t");
  Exec e = Exec::rehearsal(1);
  Phase phase(e, trace);
  const Buffer a = e.allocate(Region::workspace, "a", 100), b = e.allocate(Region::workspace, "b", 100);
  trace.lay_out();
  return trace;
}

TEST(Exec, HandsOutWhatWasPlanned) {
  Trace trace = planned();
  Arena arena(trace.bytes);
  Exec e({DeviceKind::cpu, 0}, 2, arena.data());
  e.set_poison(true);
  Phase phase(e, trace);
  const Buffer a = e.allocate(Region::workspace, "a", 60);  // smaller than planned is fine
  EXPECT_EQ(static_cast<std::byte*>(a.data()), arena.data() + trace.spans[0].offset);
  EXPECT_TRUE(std::isnan(a.as<float>()[0]));
  EXPECT_THROW(e.allocate(Region::workspace, "another", 60), Error);
}

TEST(Exec, RefusesWhatWasNotPlanned) {
  Trace trace = planned();
  Arena arena(trace.bytes);
  {
    Exec e({DeviceKind::cpu, 0}, 1, arena.data());
    Phase phase(e, trace);
    EXPECT_THROW(e.allocate(Region::workspace, "a", 200), Error);
  }
  Exec e({DeviceKind::cpu, 0}, 1, arena.data());
  Phase phase(e, trace);
  const Buffer a = e.allocate(Region::workspace, "a", 1), b = e.allocate(Region::workspace, "b", 1);
  EXPECT_THROW(e.allocate(Region::workspace, "c", 1), Error);
}

TEST(Exec, ATouchInRehearsalFaults) {
  Trace trace("t");
  Exec e = Exec::rehearsal(1);
  Phase phase(e, trace);
  const Buffer a = e.allocate(Region::workspace, "a", 100);
  EXPECT_DEATH(std::memset(a.data(), 0, 1), "");
  EXPECT_FALSE(e.op("op", 1, 2, 3));
  EXPECT_EQ(trace.ops.size(), 1u);
}

// On a CUDA device the poison takes its turn on the stream, behind what still uses the span's former owner.
TEST(Exec, OnCudaPoisonStandsInTheStream) {
  cuda::emulate({.seed = 5});
  Trace trace("t");
  const Device device{DeviceKind::cuda, 0};
  const auto run = [](Exec& e, std::vector<float>& kept) {
    const std::vector<float> ones(100, 1.f);
    {
      const Buffer a = e.allocate(Region::workspace, "a", 400);
      if (!e.rehearsing()) {
        e.stream().copy(a.data(), ones.data(), 400);
        e.stream().copy(kept.data(), a.data(), 400);
      }
    }
    const Buffer b = e.allocate(Region::workspace, "b", 400);  // where a was
    if (e.rehearsing()) return;
    e.stream().synchronize();
    EXPECT_TRUE(std::isnan(b.as<float>()[99]));
  };
  std::vector<float> kept(100);
  {
    Exec e = Exec::rehearsal(1, device);
    EXPECT_TRUE(e.on_cuda() && e.rehearsing());
    EXPECT_THROW(e.stream(), Error);
    Phase phase(e, trace);
    run(e, kept);
  }
  trace.lay_out();
  EXPECT_EQ(trace.bytes, 448u);
  Arena arena(trace.bytes);
  Exec e(device, 1, arena.data());
  e.set_poison(true);
  Phase phase(e, trace);
  run(e, kept);
  EXPECT_EQ(kept, std::vector<float>(100, 1.f));
  EXPECT_FALSE(Exec({DeviceKind::cpu, 0}, 1, nullptr).on_cuda());
}

}  // namespace
}  // namespace qlora
