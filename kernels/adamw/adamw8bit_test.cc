#include "kernels/adamw/adamw8bit.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "kernels/adamw/adamw8bit_ref.h"
#include "tests/support/body.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/optim_numbers.h"

namespace qlora {
namespace {

using testing::optim_gradient;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t blocks_of(int64_t n) { return (n + kBlock8 - 1) / kBlock8; }

// Tensors one after another, with runs of at most `longest` elements.
struct State {
  std::vector<float> params, absmax_m, absmax_v, m32, v32;
  std::vector<uint8_t> m, v;
  std::vector<MomentRun> runs;

  explicit State(const std::vector<int64_t>& sizes, int64_t longest = kMaxMomentRun) {
    int64_t param = 0, state8 = 0, block = 0, state32 = 0;
    for (const int64_t size : sizes) {
      const bool eight = size >= kMin8Bit;
      for (int64_t i = 0; i < size; i += longest) {
        const int64_t count = std::min(longest, size - i);
        int64_t& state = eight ? state8 : state32;
        runs.push_back({eight, param, count, state, eight ? block : 0});
        param += count;
        state += count;
        if (eight) block += blocks_of(count);
      }
    }
    params.resize(static_cast<size_t>(param));
    m.resize(static_cast<size_t>(state8));
    v = m;
    absmax_m.resize(static_cast<size_t>(block));
    absmax_v = absmax_m;
    m32.resize(static_cast<size_t>(state32));
    v32 = m32;
  }
  Moments8 moments() { return {runs, m, v, absmax_m, absmax_v, m32, v32}; }
  void step(const AdamWHyper& h, const std::vector<float>& grads, int threads = 2) {
    testing::run_planned(threads, [&](Exec& e) { adamw8bit(e, h, params, grads, moments()); });
  }
};

// As bits, so that signs of zero count.
template <class T>
void expect_bits(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(T)), 0)
        << what << " " << i << ": " << +got[i] << ", not " << +want[i];
}

// What the reference steps by: the definition on each block.
void step_by_definition(State& s, const AdamWHyper& h, const std::vector<float>& grads) {
  for (const MomentRun& r : s.runs)
    for (int64_t i = 0; i < r.count; i += kBlock8) {
      const auto p = static_cast<size_t>(r.param + i), at = static_cast<size_t>(r.state + i),
                 b = static_cast<size_t>(r.block + i / kBlock8);
      ref::adamw8bit_block<float>(h, &s.params[p], &grads[p], &s.m[at], &s.v[at], s.absmax_m[b],
                                  s.absmax_v[b], std::min<int64_t>(kBlock8, r.count - i));
    }
}

// Gradients over many decades, with what a step must survive: NaN, infinities, a square that overflows,
// zeros of both signs, subnormal numbers, whole blocks of zero and of what is subnormal once it is a moment.
std::vector<float> hard_gradients(size_t n, uint32_t t) {
  std::vector<float> g = optim_gradient(static_cast<uint32_t>(n), 3, t);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t x = testing::optim_hash(static_cast<uint32_t>(i), 5, t);
    g[i] = static_cast<float>(std::ldexp(g[i], -static_cast<int>(x % 40)));
    if (x % 97 == 0)
      g[i] = std::vector<float>{NAN, kInfinity, -kInfinity, 3e38f, 0.f, -0.f, 1e-41f}[x / 97 % 7];
    if (i / kBlock8 % 5 == 3) g[i] = i % 2 == 0 ? 0.f : -0.f;
    if (i / kBlock8 % 5 == 4) g[i] = static_cast<float>(std::ldexp(g[i], -100));
    if (i / kBlock8 % 5 == 2) g[i] = (x % 2 == 0 ? 0x1p-122f : -0x1p-124f);
  }
  return g;
}

// Nothing is fused, so that every ISA is the definition bit for bit.
TEST(AdamW8bit, IsTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    SCOPED_TRACE(body.name());
    State got({4096, 20000, 4097, 5003});
    got.params = testing::optim_params(static_cast<uint32_t>(got.params.size()), 3);
    for (size_t i = 0; i < got.m.size(); ++i)  // codes that a scale of 0 makes moments of 0
      got.m[i] = got.v[i] = static_cast<uint8_t>(testing::optim_hash(static_cast<uint32_t>(i), 6, 0));
    State want = got;
    for (uint32_t t = 1; t <= 6; ++t) {
      const AdamWHyper h{1e-2, .9, .95, 1e-8, t % 2 * .1, t, .25f};
      const std::vector<float> g = hard_gradients(got.params.size(), t);
      got.step(h, g);
      step_by_definition(want, h, g);
      expect_bits(got.params, want.params, "params");
      expect_bits(got.m, want.m, "codes of m");
      expect_bits(got.v, want.v, "codes of v");
      expect_bits(got.absmax_m, want.absmax_m, "scales of m");
      expect_bits(got.absmax_v, want.absmax_v, "scales of v");
    }
  }
}

// bitsandbytes' rule (tests/golden/kernels/README.md) over 20 steps: the same arithmetic, so the same bits.
TEST(AdamW8bit, FollowsBitsandbytes) {
  const golden::Tensors file("kernels/adamw8bit.safetensors");
  struct Case {
    const char* tag;
    double weight_decay, beta2;
    uint32_t k, n;
  };
  for (const Case& c : {Case{"wd0.b0.95", 0, .95, 1, 4096}, {"wd0.01.b0.999", .01, .999, 2, 10000}})
    for (const testing::Body& body : testing::bodies()) {
      const testing::WithBody with(body);
      SCOPED_TRACE(cat(c.tag, " ", body.name()));
      State s({c.n});
      s.params = testing::optim_params(c.n, c.k);
      const std::string prefix = cat("adam8.", c.tag, "."), k = std::to_string(c.k);
      for (uint32_t t = 1; t <= 20; ++t) {
        s.step({1e-3, .9, c.beta2, 1e-8, c.weight_decay, t, 1}, optim_gradient(c.n, c.k, t));
        if (t != 1 && t != 2 && t != 5 && t != 20) continue;
        std::vector<float> stored;
        for (size_t i = 0; i < c.n; i += t == 20 ? 1 : 8) stored.push_back(s.params[i]);
        expect_bits(stored, file.f32(cat(prefix, "p", k, ".step", t)), cat("step ", t));
      }
      expect_bits(s.m, file.u8(prefix + "m" + k), "codes of m");
      expect_bits(s.v, file.u8(prefix + "v" + k), "codes of v");
      expect_bits(s.absmax_m, file.f32(prefix + "absmax_m" + k), "scales of m");
      expect_bits(s.absmax_v, file.f32(prefix + "absmax_v" + k), "scales of v");
    }
}

TEST(AdamW8bit, NanInfinityAndZeroBlocksAsBitsandbytes) {
  const golden::Tensors file("kernels/adamw8bit.safetensors");
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    SCOPED_TRACE(body.name());
    State s({4096});
    s.params = testing::optim_params(4096, 9);
    for (uint32_t t = 1; t <= 5; ++t) {
      std::vector<float> g = optim_gradient(4096, 9, t);
      std::fill(g.begin() + 768, g.begin() + 1024, 0.f);
      if (t == 2) g[5] = NAN;
      if (t == 3) g[9] = kInfinity, g[10] = -kInfinity;
      s.step({1e-3, .9, .999, 1e-8, .01, t, 1}, g);
      const std::vector<float> first(s.params.begin(), s.params.begin() + 1024);
      expect_bits(first, file.f32(cat("adam8.edge.p.step", t)), cat("step ", t));
    }
    expect_bits(s.m, file.u8("adam8.edge.m"), "codes of m");
    expect_bits(s.v, file.u8("adam8.edge.v"), "codes of v");
    expect_bits(s.absmax_m, file.f32("adam8.edge.absmax_m"), "scales of m");
    expect_bits(s.absmax_v, file.f32("adam8.edge.absmax_v"), "scales of v");
  }
}

// A tensor below kMin8Bit is adamw()'s own, wherever it lies between the others.
TEST(AdamW8bit, SmallTensorsKeepMomentsOfFp32) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    SCOPED_TRACE(body.name());
    State s({300, 5000, 4095});
    s.params = testing::optim_params(9395, 4);
    ASSERT_EQ(s.m32.size(), 4395u);
    std::vector<float> first(s.params.begin(), s.params.begin() + 300),
        last(s.params.begin() + 5300, s.params.end());
    std::vector<float> m1(300), v1(300), m2(4095), v2(4095);
    for (uint32_t t = 1; t <= 3; ++t) {
      const AdamWHyper h{1e-3, .9, .999, 1e-8, .01, t, .5f};
      const std::vector<float> g = optim_gradient(9395, 4, t);
      s.step(h, g);
      testing::run_planned(1, [&](Exec& e) { adamw(e, h, first, {g.data(), 300}, m1, v1); });
      testing::run_planned(1, [&](Exec& e) { adamw(e, h, last, {g.data() + 5300, 4095}, m2, v2); });
    }
    expect_bits({s.params.begin(), s.params.begin() + 300}, first, "first");
    expect_bits({s.params.begin() + 5300, s.params.end()}, last, "last");
    m1.insert(m1.end(), m2.begin(), m2.end());
    v1.insert(v1.end(), v2.begin(), v2.end());
    expect_bits(s.m32, m1, "m");
    expect_bits(s.v32, v1, "v");
  }
}

TEST(AdamW8bit, SameBitsWhateverTheThreadsAndRuns) {
  const std::vector<int64_t> sizes = {4096, 300, 50001, 6000};
  std::optional<State> first;
  for (const auto& [threads, longest] :
       {std::pair(1, kMaxMomentRun), {3, kMaxMomentRun}, {2, int64_t{512}}}) {
    State s(sizes, longest);
    s.params = testing::optim_params(static_cast<uint32_t>(s.params.size()), 6);
    for (uint32_t t = 1; t <= 3; ++t)
      s.step({1e-3, .9, .999, 1e-8, .01, t, 1}, hard_gradients(s.params.size(), t), threads);
    if (!first) {
      first.emplace(s);
      continue;
    }
    expect_bits(s.params, first->params, "params");
    expect_bits(s.m, first->m, "codes of m");
    expect_bits(s.absmax_v, first->absmax_v, "scales of v");
    expect_bits(s.v32, first->v32, "v");
  }
}

TEST(AdamW8bit, RefusesRunsOutsideItsSpans) {
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  const auto refused = [&](void (*spoil)(State&)) {
    State s({5000, 300});
    spoil(s);
    const std::vector<float> g(s.params.size());
    EXPECT_THROW(adamw8bit(e, {1e-3, .9, .999, 1e-8, 0, 1, 1}, s.params, g, s.moments()), Error);
  };
  refused([](State& s) { s.runs[0].param = 301; });
  refused([](State& s) { s.runs[0].state = 1; });
  refused([](State& s) { s.runs[0].block = 1; });
  refused([](State& s) { s.runs[1].state = 1; });
  refused([](State& s) { s.runs[0].count = -1; });
  refused([](State& s) { s.runs[0].count = kMaxMomentRun + 1; });
  refused([](State& s) { s.v.pop_back(); });
  refused([](State& s) { s.absmax_v.pop_back(); });
  State s({300});
  EXPECT_THROW(adamw8bit(e, {1e-3, .9, .999, 1e-8, 0, 0, 1}, s.params, s.params, s.moments()), Error);
}

}  // namespace
}  // namespace qlora
