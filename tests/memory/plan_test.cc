// What is given up for memory: the cheapest that will do, judged against every other choice there is.
#include "memory/plan.h"
#include "memory/cuda/emulated.h"

#include <gtest/gtest.h>

#include "memory/cuda/emulated.h"
#include "memory/exec.h"
#include "memory/random.h"

namespace qlora {
namespace {

double cost(const std::vector<Decision>& all, const std::vector<bool>& taken) {
  double seconds = 0;
  for (size_t i = 0; i < all.size(); ++i)
    if (taken[i]) seconds += all[i].seconds;
  return seconds;
}

size_t freed(const std::vector<Decision>& all, const std::vector<bool>& taken) {
  size_t bytes = 0;
  for (size_t i = 0; i < all.size(); ++i)
    if (taken[i]) bytes += all[i].bytes;
  return bytes;
}

// A knapsack: greedy by density costs at most one decision more than the best subset, the one that did not
// quite fit, and nothing that is taken can be left out.
TEST(Choose, NearTheBestOfAllSubsets) {
  for (uint64_t draw = 0; draw < 50; ++draw) {
    std::vector<Decision> all;
    double dearest = 0;
    for (uint64_t i = 0; i < 10; ++i) {
      all.push_back({1.0 + static_cast<double>(random_bits(draw, 2 * i) % 100),
                     1 + random_bits(draw, 2 * i + 1) % 1000});
      dearest = std::max(dearest, all.back().seconds);
    }
    const size_t whole = freed(all, std::vector<bool>(all.size(), true));
    for (const size_t wanted : {whole / 10, whole / 3, whole / 2, whole - 1, whole}) {
      const auto fits = [&](const std::vector<bool>& t) { return freed(all, t) >= wanted; };
      const std::vector<bool> taken = choose(all, fits);
      ASSERT_EQ(taken.size(), all.size());
      EXPECT_TRUE(fits(taken));
      double best = 1e300;
      for (unsigned bits = 0; bits < 1u << all.size(); ++bits) {
        std::vector<bool> t;
        for (size_t i = 0; i < all.size(); ++i) t.push_back((bits >> i & 1) != 0);
        if (fits(t)) best = std::min(best, cost(all, t));
      }
      EXPECT_LE(cost(all, taken), best + dearest) << draw << " " << wanted;
      for (size_t i = 0; i < all.size(); ++i) {
        if (!taken[i]) continue;
        std::vector<bool> without = taken;
        without[i] = false;
        EXPECT_FALSE(fits(without)) << "decision " << i << " is for nothing";
      }
    }
  }
}

TEST(Choose, NothingWhereNothingIsAsked) {
  const std::vector<Decision> all = {{1, 10}, {2, 0}};
  EXPECT_EQ(choose(all, [](const std::vector<bool>&) { return true; }), (std::vector<bool>{false, false}));
  EXPECT_TRUE(choose(all, [](const std::vector<bool>&) { return false; }).empty());
  // What frees nothing is taken last.
  const auto first = [](const std::vector<bool>& t) { return t[0]; };
  EXPECT_EQ(choose(all, first), (std::vector<bool>{true, false}));
}

TEST(Plan, LiveBytesAtThePeakByNameAndBlock) {
  Trace trace("t");
  Exec e = Exec::rehearsal(1);
  {
    Phase phase(e, trace);
    e.set_block(0);
    const Buffer a = e.allocate(Region::activations, "a", 1000);
    e.set_block(1);
    const Buffer b = e.allocate(Region::activations, "a", 2000);
    { const Buffer gone = e.allocate(Region::workspace, "w", 100); }
    e.set_block(-1);
    const Buffer c = e.allocate(Region::logits, "l", 500), d = e.allocate(Region::logits, "l", 600);
  }
  const std::vector<LiveBytes> live = live_at_peak(trace);
  ASSERT_EQ(live.size(), 3u);
  EXPECT_EQ(live[0].block, 0);
  EXPECT_EQ(live[0].bytes, 1024u);
  EXPECT_EQ(live[1].block, 1);
  EXPECT_EQ(live[1].bytes, 2048u);
  EXPECT_EQ(live[2].bytes, 512u + 640u);
  size_t sum = 0;
  for (const LiveBytes& l : live) sum += l.bytes;
  EXPECT_EQ(sum, trace.peak_live_bytes());
}

// What a CUDA device has in pinned host memory is an arena of its own; on a CPU it is one memory.
TEST(Plan, AHostSideIsLaidOutByItself) {
  cuda::emulate({.seed = 5});
  for (const DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda}) {
    Trace trace("t");
    const auto pass = [&](Exec& e) {
      Phase phase(e, trace);
      const Buffer a = e.allocate(Region::workspace, "a", 1024);
      const Buffer h = e.allocate(Region::staging, "h", 256, Place::host);
      const Buffer b = e.allocate(Region::workspace, "b", 512);
      return std::pair(h.as<std::byte>(), b.as<std::byte>());
    };
    Exec rehearsal = Exec::rehearsal(1, {kind, 0});
    EXPECT_TRUE(rehearsal.rehearsing());
    EXPECT_EQ(rehearsal.on_cuda(), kind == DeviceKind::cuda);
    pass(rehearsal);
    trace.lay_out();
    const bool cuda = kind == DeviceKind::cuda;
    EXPECT_EQ(trace.bytes, cuda ? 1536u : 1792u);
    EXPECT_EQ(trace.host_bytes, cuda ? 256u : 0u);
    EXPECT_EQ(trace.peak_live_bytes(), trace.bytes);
    EXPECT_EQ(trace.peak_live_bytes(Place::host), trace.host_bytes);
    EXPECT_EQ(live_at_peak(trace, Place::host).size(), cuda ? 1u : 0u);
    EXPECT_EQ(live_at_peak(trace).size(), cuda ? 2u : 3u);
    trace.host_base = 64;
    Arena device(4096), host(4096);
    Exec e({kind, 0}, 1, device.data(), host.data());
    const auto [h, b] = pass(e);
    if (cuda) {
      EXPECT_EQ(h, host.data() + 64);
    }
    EXPECT_EQ(b, device.data() + 1024);
  }
}

TEST(Plan, ALoopIsRehearsedOnceAndCountsItsRounds) {
  Trace trace("t");
  {
    Exec e = Exec::rehearsal(1);
    Phase phase(e, trace);
    e.loop(7, 6.5, [&](int64_t i) {
      EXPECT_EQ(i, 0);
      const Buffer a = e.allocate(Region::workspace, "a", 100);
      e.loop(2, 2, [&](int64_t) { EXPECT_FALSE(e.op("inner", 10, 1, 0)); });
      e.op("outer", 10, 1, 0);
    });
    const Buffer b = e.allocate(Region::workspace, "b", 100);
    Buffer kept;
    EXPECT_THROW(e.loop(2, 2, [&](int64_t) { kept = e.allocate(Region::workspace, "c", 1); }), Error);
  }
  ASSERT_EQ(trace.ops.size(), 2u);
  EXPECT_EQ(trace.ops[0].flops, 130);
  EXPECT_EQ(trace.ops[1].flops, 65);
  trace.spans.resize(2);
  trace.lay_out();
  Arena arena(trace.bytes);
  Exec e({DeviceKind::cpu, 0}, 1, arena.data());
  Phase phase(e, trace);
  int64_t rounds = 0;
  e.loop(7, 6.5, [&](int64_t i) {
    EXPECT_EQ(i, rounds++);
    const Buffer a = e.allocate(Region::workspace, "a", 100);
  });
  EXPECT_EQ(rounds, 7);
  const Buffer b = e.allocate(Region::workspace, "b", 100);
}

}  // namespace
}  // namespace qlora
