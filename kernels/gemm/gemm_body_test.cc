// The bodies of gemm's own kernel on a CUDA device, and which of them a card runs.
#include <gtest/gtest.h>

#include <array>

#include "kernels/cuda/body.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/gemm/gemm_test_data.h"
#include "kernels/gemm/gemm_test_near.h"
#include "memory/cuda/emulated.h"
#include "memory/cuda/start.h"
#include "tests/support/gemm_on_cuda.h"

namespace qlora {
namespace {

using cuda::Body;
using testing::run_planned;

class GemmBody : public GemmCuda {
 protected:
  ~GemmBody() override { cuda::set_cuda_body({}); }
};

// Sums of a few steps, fewer than either keeps ahead, and of many; in every direction.
TEST_F(GemmBody, BothHaveTheSameBits) {
  on_cuda(CudaGemm::own, [] {
    cuda::emulate({.shared_bytes = size_t{227} << 10});
    if (cuda::cuda_body_of(cuda::find(0).shared_bytes) != Body::deep) GTEST_SKIP() << "the card has no room";
    for (const int64_t K : {8, 72, 330}) {
      const TestWeight w(Format::nf4, 136, K, {}), back(Format::bf16, K, 40, {});
      const TestMatrix x(DType::bf16, 130, K, 0), dy(DType::bf16, K, 24, 0), wide(DType::bf16, K, 136, 0);
      const auto by = [&](Body body) {
        cuda::set_cuda_body(body);
        std::vector<TestMatrix> y{
            {DType::bf16, 130, 136, 0}, {DType::f32, 130, 40, 0}, {DType::f32, 24, 136, 0}};
        const GemmTerm forward{x.view(), w.view()}, backward{x.view(), back.view()};
        run_planned(1, [&](Exec& e) {
          gemm_nt(e, "forward", {&forward, 1}, {}, y[0].view());
          gemm_nn(e, "backward", {&backward, 1}, {}, y[1].view());
          gemm_tn(e, "gradient", dy.view(), wide.view(), 1, y[2].view());
        });
        return y;
      };
      const auto one = by(Body::sm80), other = by(Body::deep);
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(same_bits(one[i], other[i])) << i << " of K " << K;
    }
  });
}

// Tiles of 128 x 128 in groups of eight, the last of one: more than three groups; sides of whole tiles and a
// bit more.
TEST_F(GemmBody, LargeOutputs) {
  on_cuda(CudaGemm::own, [] {
    for (const auto& [M, N, K] : {std::array<int64_t, 3>{1152, 256, 8}, {3105, 130, 8}, {1060, 257, 33}}) {
      const TestWeight w(Format::bf16, N, K, {});
      const TestMatrix x(DType::bf16, M, K, 0);
      const GemmTerm term{x.view(), w.view()};
      TestMatrix y(DType::f32, M, N, 3);
      run_planned(1, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, y.view()); });
      expect_near(y.view(), gemm_ref<double>({&term, 1}, {}, M, N, true), K, cat(M, "x", N, "x", K));
      EXPECT_TRUE(y.padding_untouched());
    }
  });
}

// A card that cannot hold two of its blocks does not run the deep one; one that has not even room for one
// refuses the launch.
TEST_F(GemmBody, TheCardsRoomChooses) {
  for (const size_t kib : {99, 163, 224}) EXPECT_EQ(cuda::cuda_body_of(kib << 10), Body::sm80) << kib;
  EXPECT_EQ(cuda::cuda_body_of(size_t{227} << 10), Body::deep);
  EXPECT_EQ(cuda::cuda_body_of("sm80"), Body::sm80);
  try {
    cuda::cuda_body_of("sm_80");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::usage);
    EXPECT_STREQ(e.what(), "QLORA_CUDA_BODY=sm_80: unknown; use sm80, or unset it");
  }
}

}  // namespace
}  // namespace qlora
