#include "kernels/grad_norm/grad_norm.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/grad_norm/grad_norm_ref.h"
#include "tests/support/body.h"
#include "tests/support/golden_tensors.h"

namespace qlora {
namespace {

double norm(const std::vector<float>& x, int threads = 2) {
  double n = -1;
  testing::run_planned(threads, [&](Exec& e) { n = l2_norm(e, x); });
  return n;
}

std::vector<float> floats(int64_t n) {
  const std::vector<double> v = testing::Tensor::normal(DType::f32, 1, n, 1).values();
  return {v.begin(), v.end()};
}

TEST(L2Norm, AgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (int64_t n : {0, 1, 15, 16, 17, 16384, 16385, 100000}) {
      const std::vector<float> x = floats(n);
      const std::vector<double> wide(x.begin(), x.end());
      const double expected = ref::l2_norm(n, wide.data());
      // Both sum n positive terms in double.
      EXPECT_NEAR(norm(x), expected, expected * (static_cast<double>(n) + 4) * std::ldexp(1, -53));
    }
  }
}

TEST(L2Norm, SameBitsWhateverTheThreadsAndTheIsa) {
  const std::vector<float> x = floats(100000);
  const double expected = norm(x, 1);
  EXPECT_EQ(norm(x, 3), expected);
  for (Isa isa : testing::isas()) {
    const testing::WithIsa with(isa);
    EXPECT_EQ(norm(x), expected) << name_of(isa);
  }
}

TEST(L2Norm, SquaresThatOverflowFp32) { EXPECT_NEAR(norm(std::vector<float>(4, 1e30f)), 2e30, 1e24); }

TEST(L2Norm, NaNAndInfinityShow) {
  for (size_t at : {0, 16390, 19999}) {
    std::vector<float> x = floats(20000);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(std::isinf(norm(x)));
    x[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(norm(x)));
  }
}

// Against torch's clip_grad_norm_, which sums in fp32: off by half of 1300 u at most. The gradients are the
// fixtures' own: the clipped ones divided by their factor.
TEST(L2Norm, AgreesWithTorch) {
  const golden::Tensors file("kernels/optim.safetensors");
  std::vector<float> unclipped = file.f32("clip.1000.grad0");
  for (float g : file.f32("clip.1000.grad1")) unclipped.push_back(g);
  const double got = norm(unclipped);
  for (const char* limit : {"0.3", "1", "1000"}) {
    const std::string key = cat("clip.", limit);
    EXPECT_NEAR(got, file.f32(key + ".norm")[0], got * 700 * testing::kU);
    const double factor = std::min(1., std::stod(limit) / (got + 1e-6));
    std::vector<float> clipped = file.f32(key + ".grad0");
    for (float g : file.f32(key + ".grad1")) clipped.push_back(g);
    for (size_t i = 0; i < clipped.size(); ++i)
      ASSERT_NEAR(unclipped[i] * factor, clipped[i], std::abs(clipped[i]) * 710 * testing::kU);
  }
}

}  // namespace
}  // namespace qlora
