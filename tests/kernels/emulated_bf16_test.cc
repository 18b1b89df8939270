#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/attention_args.h"
#include "kernels/attention/attention_bf16_memory.h"
#include "kernels/attention/attention_vector_memory.h"
#include "kernels/common/cpu_facts.h"
#include "kernels/common/rows.h"
#include "kernels/gemm/gemm_blocks.h"
#include "kernels/gemm/gemm_test_data.h"
#include "quant/codebook.h"
#include "tests/support/tensor.h"

// The instructions that tests/isas emulates against the CPU's own: whole bodies, on the same operands, and
// each instruction on any bits.

#define QLORA_BODY "tests/kernels/emulated_bf16_cpu.inl"
#include "kernels/common/for_each_isa.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target( \
    "amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::real_amx {
#include "tests/kernels/emulated_bf16_amx.inl"
}  // namespace qlora::real_amx
namespace qlora::real_dots {
#include "tests/kernels/emulated_bf16_dots.inl"
}  // namespace qlora::real_dots
#pragma GCC pop_options

#include "tests/isas/emulator.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::emulated_amx {
#include "tests/kernels/emulated_bf16_amx.inl"
}  // namespace qlora::emulated_amx
namespace qlora::emulated_dots {
#include "tests/kernels/emulated_bf16_dots.inl"
}  // namespace qlora::emulated_dots
#pragma GCC pop_options

namespace qlora {
namespace {

using testing::Tensor;

// The real ones, and the emulated ones.
struct Bodies {
  const char* name;
  Isa isa;
  decltype(&real_amx::gemm_part) gemm[2];
  decltype(&real_amx::gemm_tn_part) gemm_tn[2];
  // Of attention: v and k of a block of keys packed, both passes of a block of queries, dK and dV of its
  // keys.
  using Task = decltype(&real_amx::attention_forward_task);
  Task values[2], forward[2], keys[2], backward[2], finish[2];
};
const Bodies kBodies[] = {
    {"amx",
     Isa::amx,
     {real_amx::gemm_part, emulated_amx::gemm_part},
     {real_amx::gemm_tn_part, emulated_amx::gemm_tn_part},
     {real_amx::attention_prepare_values, emulated_amx::attention_prepare_values},
     {real_amx::attention_forward_task, emulated_amx::attention_forward_task},
     {real_amx::attention_prepare_keys, emulated_amx::attention_prepare_keys},
     {real_amx::attention_backward_task, emulated_amx::attention_backward_task},
     {real_amx::attention_finish_keys, emulated_amx::attention_finish_keys}},
    {"avx512bf16",
     Isa::avx512bf16,
     {real_dots::gemm_part, emulated_dots::gemm_part},
     {real_dots::gemm_tn_part, emulated_dots::gemm_tn_part},
     {real_dots::attention_prepare_values, emulated_dots::attention_prepare_values},
     {real_dots::attention_forward_task, emulated_dots::attention_forward_task},
     {real_dots::attention_prepare_keys, emulated_dots::attention_prepare_keys},
     {real_dots::attention_backward_task, emulated_dots::attention_backward_task},
     {real_dots::attention_finish_keys, emulated_dots::attention_finish_keys}},
};

class EmulatedBf16 : public ::testing::TestWithParam<Bodies> {
 protected:
  void SetUp() override {
    const std::string missing = lacking(GetParam().isa, read_cpu());  // not of a program that emulates it
    if (!missing.empty()) GTEST_SKIP() << "nothing to compare with: this machine lacks " << missing;
  }
};
INSTANTIATE_TEST_SUITE_P(Isas, EmulatedBf16, ::testing::ValuesIn(kBodies),
                         [](const auto& info) { return std::string(info.param.name); });

using Memory = std::vector<float, LineAllocator<float>>;

TEST_P(EmulatedBf16, ProductsHaveTheCpusBits) {
  for (const Format format : {Format::nf4, Format::q8_0, Format::bf16})
    for (const auto& [M, N, K] : {std::array<int64_t, 3>{1, 16, 32}, {35, 50, 96}, {70, 97, 1376}})
      for (const bool nt : {true, false})
        for (const DType dtype : kDTypes) {
          const TestWeight w(format, nt ? N : K, nt ? K : N, {}),
              b(Format::f32, nt ? N : 17, nt ? 17 : N, {});
          if (w.view().cols % 32 != 0 && is_gguf(format)) continue;
          const TestMatrix x(DType::bf16, M, K, 0), s(DType::bf16, M, 17, 3), residual(dtype, M, N, 1);
          const GemmTerm terms[] = {{x.view(), w.view()}, {s.view(), b.view()}};
          TestMatrix y[] = {{dtype, M, N, 0}, {dtype, M, N, 0}};
          for (const int i : {0, 1}) {
            const GemmWorkspace space(kBf16GemmTile, true, M, N);
            Memory memory(static_cast<size_t>(space.floats()), 7.f);
            const GemmCall call{terms, {nullptr, residual.view()}, y[i].view(), nt};
            GetParam().gemm[i](call, {0, M, 0, N}, space, memory.data());
          }
          ASSERT_TRUE(same_bits(y[0], y[1])) << int(format) << " " << M << " " << N << " " << K << " " << nt;
        }
}

TEST_P(EmulatedBf16, TransposedProductsHaveTheCpusBits) {
  for (const auto& [M, P, Q] : {std::array<int64_t, 3>{1, 1, 1}, {75, 16, 70}, {700, 21, 40}})
    for (const bool swapped : {false, true}) {
      const TestMatrix a(DType::bf16, M, P, 3), b(DType::bf16, M, Q, 0);
      const TestMatrix former(DType::f32, swapped ? Q : P, swapped ? P : Q, 0);
      TestMatrix out[] = {former, former};
      for (const int i : {0, 1}) {
        const GemmWorkspace space(kBf16GemmTile, true, P, Q);
        Memory memory(static_cast<size_t>(space.floats()), 7.f);
        const GemmTnCall call{a.view(), b.view(), 0.375f, out[i].view(), swapped};
        GetParam().gemm_tn[i](call, {0, P, 0, Q}, space, memory.data());
      }
      ASSERT_TRUE(same_bits(out[0], out[1])) << M << " " << P << " " << Q << " " << swapped;
      ASSERT_FALSE(same_bits(out[0], former));
    }
}

TEST_P(EmulatedBf16, AttentionHasTheCpusBits) {
  for (const auto& [rows, dim] : {std::pair<int64_t, int>{1, 8}, {70, 64}, {130, 40}}) {
    const AttentionShape shape{2, 1, dim, 0.2f, 0, 0};
    const auto draw = [&](int64_t cols, uint64_t seed) {
      return Tensor::normal(DType::bf16, rows, cols, seed, 1, 8);
    };
    const Tensor q = draw(2 * dim, 1), k = draw(dim, 2), v = draw(dim, 3), d_o = draw(2 * dim, 4);
    struct {
      Tensor o, dq, dk, dv, lse;
    } got[2] = {{q, q, k, v, Tensor(DType::f32, 2, rows, 0)}, {q, q, k, v, Tensor(DType::f32, 2, rows, 0)}};
    for (const int i : {0, 1}) {
      float* const lse = got[i].lse.mat().row<float>(0);
      attention::Args a{shape,
                        q,
                        k,
                        v,
                        got[i].o,
                        d_o,
                        lse,
                        rows,
                        nullptr,
                        got[i].o.mat(),
                        got[i].dq.mat(),
                        got[i].dk.mat(),
                        got[i].dv.mat(),
                        lse};
      const int64_t block = attention::KeyBlocks(a.padded_dim(), true).bytes;
      const int64_t each = std::max(attention::ForwardMemory(a).bytes, attention::BackwardMemory(a).bytes);
      Memory memory(static_cast<size_t>((each + attention::shared_blocks(rows, 1) * block) / 4), 7.f);
      char* const work = reinterpret_cast<char*>(memory.data());
      a.shared = work + each;
      const auto run = [&](const Bodies::Task* task, int head, bool down) {
        for (int64_t n = 0, blocks = (rows + attention::kTile - 1) / attention::kTile; n < blocks; ++n)
          task[i](a, {0, rows, 0, rows, head, 0, 0}, (down ? blocks - 1 - n : n) * attention::kTile, work);
      };
      const bool shares = rows > attention::kTile;
      if (shares) run(GetParam().values, 0, false);
      for (const int head : {0, 1}) run(GetParam().forward, head, true);
      if (shares) run(GetParam().keys, 0, false);
      run(GetParam().backward, 0, true);
      if (shares) run(GetParam().finish, 0, false);
    }
    ASSERT_TRUE(got[0].o == got[1].o && got[0].lse == got[1].lse && got[0].dq == got[1].dq);
    ASSERT_TRUE(got[0].dk == got[1].dk && got[0].dv == got[1].dv);
  }
}

// Any bits, infinities, NaNs and subnormals too: of NaNs only that they are.
TEST_P(EmulatedBf16, InstructionsHaveTheCpusBits) {
  std::mt19937 random(1);
  const auto draw = [&](auto&& word) {
    std::vector<uint32_t, LineAllocator<uint32_t>> out(256);
    for (uint32_t& w : out) w = word();
    return out;
  };
  const auto any = [&] { return static_cast<uint32_t>(random()); };
  // Sums and products about 2^-126, below which is nothing but 0.
  const auto small_sum = [&] { return any() & 0x827fffffu; };
  const auto factor = [&] { return (61 + any() % 7) << 7 | (any() & 0x807fu); };
  const auto factors = [&] { return factor() << 16 | factor(); };
  for (int round = 0; round < 400; ++round) {
    const bool small = round % 2 != 0;
    const auto c = small ? draw(small_sum) : draw(any);
    const auto a = small ? draw(factors) : draw(any), b = small ? draw(factors) : draw(any);
    auto results = std::array{c, c};
    for (const int i : {0, 1}) {
      void* const at = results[static_cast<size_t>(i)].data();
      if (GetParam().isa == Isa::amx)
        (i == 0 ? real_amx::one_product : emulated_amx::one_product)(at, a.data(), b.data());
      else
        (i == 0 ? real_dots::one_product : emulated_dots::one_product)(at, a.data(), b.data());
    }
    for (size_t j = 0; j < 256; ++j) {
      float f[2];
      for (const size_t i : {size_t{0}, size_t{1}}) std::memcpy(&f[i], &results[i][j], 4);
      if (std::isnan(f[0]) && std::isnan(f[1])) continue;
      ASSERT_EQ(results[0][j], results[1][j]) << "round " << round << " [" << j << "]";
    }
  }
}

}  // namespace
}  // namespace qlora
#endif
