#include "kernels/attention/attention_step.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention/attention_ref.h"
#include "tests/support/body.h"

namespace qlora {
namespace {

using testing::kU;
using testing::Tensor;

AttentionShape shape(int q_heads, int kv_heads, int dim, int window = 0, float softcap = 0) {
  return {q_heads, kv_heads, dim, 1.f / std::sqrt(static_cast<float>(dim)), window, softcap};
}

std::vector<double> values(const ConstMat& m) {
  std::vector<double> out;
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.cols; ++c)
      out.push_back(m.dtype == DType::f32 ? static_cast<double>(m.row<float>(r)[c])
                                          : static_cast<double>(static_cast<float>(m.row<bf16>(r)[c])));
  return out;
}

// A score is off by its sum's roundings, e = (dim + 6) u sum |q k| scale, those of the differences that it
// enters included, a cap's tanh by 6 u of the cap, and exp by 6 u, twice where parts of the keys are brought
// to one scale; the greatest score's error and its own move a weight by a share of 2 (e + 12 u), the sum of
// weights as much, and each sum over the keys rounds once a key, and a part's once more. Then o rounds.
void expect_step(const AttentionShape& s, DType type, int64_t keys, int threads, bool on_16) {
  const int64_t wide = s.q_heads * s.head_dim, narrow = s.kv_heads * s.head_dim;
  const Tensor q = Tensor::normal(type, 1, wide, 1, 1.5, 3),
               k = Tensor::normal(type, keys, narrow, 2, 1.5, on_16 ? 8 : 3),
               v = Tensor::normal(type, keys, narrow, 3, 1, on_16 ? 8 : 5);
  Tensor o(type, 1, wide, 7);
  testing::run_planned(threads, [&](Exec& e) { attention_step(e, s, q, k, v, o.mat()); });
  const std::vector<double> qs = values(q), ks = values(k), vs = values(v), got = values(ConstMat(o));
  std::vector<double> want(qs.size()), p(static_cast<size_t>(s.q_heads * keys)),
      lse(static_cast<size_t>(s.q_heads));
  ref::attention_forward<double>(s, 1, keys, qs.data(), ks.data(), vs.data(), want.data(), p.data(),
                                 lse.data());
  for (int h = 0; h < s.q_heads; ++h) {
    const int64_t g = h / (s.q_heads / s.kv_heads);
    double score = 0;
    for (int64_t j = 0; j < keys; ++j) {
      double sum = 0;
      for (int c = 0; c < s.head_dim; ++c)
        sum += std::abs(qs[static_cast<size_t>(h * s.head_dim + c)] *
                        ks[static_cast<size_t>(j * narrow + g * s.head_dim + c)]);
      score = std::max(score, sum);
    }
    const double e = (s.head_dim + 6) * kU * score * s.scale + 6 * kU * s.softcap;
    const double share = 4 * (e + 12 * kU) + 4 * static_cast<double>(keys) * kU;
    for (int c = 0; c < s.head_dim; ++c) {
      double magnitude = 0;
      for (int64_t j = 0; j < keys; ++j)
        magnitude += p[static_cast<size_t>(h * keys + j)] *
                     std::abs(vs[static_cast<size_t>(j * narrow + g * s.head_dim + c)]);
      const auto at = static_cast<size_t>(h * s.head_dim + c);
      const double rounding =
          std::ldexp(std::abs(want[at]) + share * magnitude, type == DType::bf16 ? -8 : -23);
      ASSERT_NEAR(got[at], want[at], share * magnitude + rounding) << "head " << h << " column " << c;
    }
  }
  testing::expect_clean(o);
}

TEST(AttentionStep, IsTheDefinition) {
  const AttentionShape shapes[] = {shape(1, 1, 8),   shape(9, 3, 64),          shape(4, 2, 24),
                                   shape(2, 1, 200), shape(2, 1, 16, 7),       shape(2, 2, 96, 1),
                                   shape(1, 1, 256), shape(2, 1, 40, 9, 0.8f), shape(4, 1, 128, 0, 1.5f)};
  for (const testing::Body& body : testing::bodies()) {
    if (body.variant > 0) continue;  // emulation is slow
    SCOPED_TRACE(body.name());
    const testing::WithBody with(body);
    for (const AttentionShape& s : shapes)
      for (const DType type : {DType::f32, DType::bf16})
        for (const int64_t keys : {1, 5, 16, 67, 150, 300}) {
          SCOPED_TRACE(
              cat(s.q_heads, " over ", s.kv_heads, " of ", s.head_dim, ", ", keys, " keys, ", name_of(type)));
          expect_step(s, type, keys, 3, keys % 2 == 0);
          if (::testing::Test::HasFatalFailure()) return;
        }
  }
}

// The query heads of a key head are more than a block has, or no whole fours, of several key heads or one;
// the window begins within a part, or at one.
TEST(AttentionStep, OnCudaWhateverTheOrder) {
  for (const testing::Body& body : testing::bodies()) {
    if (body.device.kind != DeviceKind::cuda) continue;
    SCOPED_TRACE(body.name());
    const testing::WithBody with(body);
    for (const AttentionShape& s :
         {shape(14, 2, 16), shape(5, 1, 104), shape(8, 1, 64, 128), shape(4, 4, 32, 129, 2.f)})
      for (const DType type : {DType::f32, DType::bf16})
        for (const int64_t keys : {255, 257}) {
          SCOPED_TRACE(
              cat(s.q_heads, " over ", s.kv_heads, " of ", s.head_dim, ", ", keys, " keys, ", name_of(type)));
          expect_step(s, type, keys, 1, true);
          if (::testing::Test::HasFatalFailure()) return;
        }
  }
}

// One key's score is so far above the others' that its exp overflows where it is not of a difference to the
// largest, wherever that stands: the others' weights are 0, and its value is the output.
TEST(AttentionStep, OneKeyAlone) {
  const AttentionShape s{4, 2, 16, 64.f, 0, 0};
  testing::for_each_body([&] {
    const Tensor v = Tensor::normal(DType::f32, 300, 32, 3);
    Tensor q(DType::f32, 1, 64, 0);
    for (int c = 0; c < 64; ++c) q.set(0, c, 1);
    for (const int64_t alone : {0, 1, 31, 32, 33, 65, 98, 127, 128, 129, 160, 257, 299}) {
      Tensor k(DType::f32, 300, 32), o(DType::f32, 1, 64);
      for (int64_t j = 0; j < 300; ++j)
        for (int c = 0; c < 32; ++c) k.set(j, c, j == alone ? 1 : 0);
      testing::run_planned(1, [&](Exec& e) { attention_step(e, s, q, k, v, o.mat()); });
      for (int c = 0; c < 64; ++c) ASSERT_EQ(o.get(0, c), v.get(alone, c / 32 * 16 + c % 16)) << alone;
      testing::expect_clean(o);
    }
  });
}

TEST(AttentionStep, ThreadsChangeNothing) {
  const AttentionShape s = shape(9, 3, 64);
  const Tensor q = Tensor::normal(DType::bf16, 1, 576, 1, 1, 0),
               k = Tensor::normal(DType::bf16, 90, 192, 2, 1, 0);
  std::vector<std::string> seen;
  for (const int threads : {1, 2, 4}) {
    Tensor o(DType::bf16, 1, 576, 0);
    testing::run_planned(threads, [&](Exec& e) { attention_step(e, s, q, k, k, o.mat()); });
    seen.emplace_back(o.bytes());
  }
  EXPECT_EQ(seen[0], seen[1]);
  EXPECT_EQ(seen[0], seen[2]);
}

TEST(AttentionStep, RefusesWhatDoesNotFit) {
  const Tensor one(DType::f32, 1, 64, 0), two(DType::f32, 2, 64, 0), keys(DType::f32, 3, 32, 0);
  Tensor o(DType::f32, 1, 64, 0);
  const auto run = [&](const ConstMat& q, const ConstMat& k) {
    testing::run_planned(1, [&](Exec& e) { attention_step(e, shape(2, 1, 32), q, k, k, o.mat()); });
  };
  EXPECT_THROW(run(two, keys), Error);
  EXPECT_THROW(run(one, one), Error);
  EXPECT_NO_THROW(run(one, keys));
}

}  // namespace
}  // namespace qlora
