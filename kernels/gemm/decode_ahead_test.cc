#include "kernels/gemm/decode_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/gemm/gemm_choice.h"
#include "kernels/gemm/gemm_plan.h"
#include "kernels/gemm/gemm_test_data.h"
#include "memory/cuda/host.h"
#include "tests/support/body.h"
#include "tests/support/gemm_on_cuda.h"

namespace qlora {
namespace {

using cuda::StreamOrder;
using testing::run_planned;

constexpr int64_t kRows = 70, kIn = 64, kOut = 72, kRank = 8;

class DecodesAhead : public GemmCuda {
 protected:
  // f with streams in this order.
  template <class F>
  void in_order(CudaGemm choice, StreamOrder order, const F& f) {
    on_cuda(choice, [&] {
      cuda::emulate({.order = order});
      f();
    });
  }
};

// A linear's forward with LoRA as one sum, one whose sum is fp32, one onto a stored weight, and a group's
// backward: what a block asks for, in each type and with rows off 16 bytes, and then all of it again.
std::vector<std::string> products(DecodeAhead* ahead, int64_t gap) {
  const TestWeight w1(Format::nf4, kOut, kIn, {}), w2(Format::int8, kOut, kIn, {}),
      w3(Format::nf4, kOut, kIn, {.scale = 3}), stored(Format::bf16, kOut, kIn, {}),
      b(Format::f32, kOut, kRank, {.scale = 2}), a(Format::f32, kRank, kIn, {});
  const TestMatrix x(DType::bf16, kRows, kIn, gap), s(DType::bf16, kRows, kRank, gap),
      dy(DType::bf16, kRows, kOut, gap), bias(DType::f32, 1, kOut, 0);
  const GemmTerm first[] = {{x.view(), w1.view()}, {s.view(), b.view()}},
                 second[] = {{x.view(), w2.view()}, {s.view(), b.view()}},
                 third[] = {{x.view(), stored.view()}, {s.view(), b.view()}},
                 group[] = {{dy.view(), w3.view()}, {dy.view(), w1.view()}, {s.view(), a.view()}};
  std::vector<TestMatrix> out;
  for (int pass = 0; pass < 2; ++pass) {
    for (int i = 0; i < 3; ++i) out.emplace_back(DType::bf16, kRows, kOut, gap);
    out.emplace_back(DType::f32, kRows, kIn, gap);
    out.emplace_back(DType::bf16, kRows, kIn, gap);
  }
  run_planned(1, [&](Exec& e) {
    if (ahead != nullptr && !e.rehearsing()) ahead->start(e.device());
    for (size_t pass = 0; pass < 2; ++pass) {
      TestMatrix* const y = &out[5 * pass];
      const DecodeAhead::Pass passing(ahead, e);
      gemm_nt(e, "first", first, {}, y[0].view(), ahead);
      gemm_nt(e, "second", second, {bias.view().row<float>(0), {}}, y[1].view(), ahead);
      gemm_nt(e, "third", third, {}, y[2].view(), ahead);
      gemm_nn(e, "group", group, {}, y[3].view(), ahead);
      gemm_nn(e, "rounded", group, {}, y[4].view(), ahead);
    }
  });
  std::vector<std::string> bits;
  for (const TestMatrix& m : out) bits.emplace_back(m.bytes());
  return bits;
}

// The bits are those of products that decode in their turn, as late and as early as the events let each
// stream run: a panel that is read before it is filled, or filled while it is read, holds another weight, or
// what it was poisoned with.
TEST_F(DecodesAhead, TheSameBitsInAnyOrder) {
  for (const CudaGemm choice : {CudaGemm::dequant, CudaGemm::own})
    for (const int64_t gap : {8, 3}) {
      std::vector<std::string> inline_bits;
      on_cuda(choice, [&] { inline_bits = products(nullptr, gap); });
      for (const StreamOrder order :
           {StreamOrder::oldest_first, StreamOrder::youngest_first, StreamOrder::threads}) {
        SCOPED_TRACE(static_cast<int>(order));
        in_order(choice, order, [&] {
          DecodeAhead ahead;
          EXPECT_EQ(products(&ahead, gap), inline_bits);
        });
      }
    }
}

// A weight is decoded before the product before it has begun, where the streams run so.
TEST_F(DecodesAhead, EmulatedBesideTheProductBefore) {
  in_order(CudaGemm::own, StreamOrder::youngest_first, [] {
    const TestWeight w(Format::nf4, kOut, kIn, {});
    const TestMatrix x(DType::bf16, kRows, kIn, 0);
    TestMatrix y(DType::bf16, kRows, kOut, 0);
    const GemmTerm term{x.view(), w.view()};
    std::string order;
    const auto note = [&](Exec& e, auto f) { e.stream().call(f, &order); };
    DecodeAhead ahead;
    run_planned(1, [&](Exec& e) {
      if (!e.rehearsing()) ahead.start(e.device());
      const DecodeAhead::Pass passing(&ahead, e);
      for (int i = 0; i < 3; ++i) {
        if (!e.rehearsing()) note(e, [](void* s) { *static_cast<std::string*>(s) += "product "; });
        gemm_nt(e, "product", {&term, 1}, {}, y.view(), &ahead);
        if (!e.rehearsing())
          note(ahead.stream(), [](void* s) { *static_cast<std::string*>(s) += "decode "; });
      }
    });
    EXPECT_EQ(order, "decode decode product decode product product ") << "two panels";
  });
}

// What is planned: two panels of the largest product's weights, an adapter's where they are one operand with
// others, and so much less workspace; nothing of what is not decoded, and of few rows.
TEST_F(DecodesAhead, PlansTwoPanels) {
  const TestWeight w(Format::nf4, kOut, kIn, {}), stored(Format::bf16, kOut, kIn, {}),
      lora(Format::f32, kOut, kRank, {});
  const TestMatrix x(DType::bf16, 256, kIn, 0), s(DType::bf16, 256, kRank, 0);
  constexpr size_t kW = kOut * kIn * sizeof(bf16), kLora = kOut * kRank * sizeof(bf16);
  const auto expect = [&](const WeightView& weight, int64_t rows, DType type, size_t panel, size_t here) {
    TestMatrix y(type, 256, kOut, 0);
    const GemmTerm terms[] = {{x.view().row_range(0, rows), weight},
                              {s.view().row_range(0, rows), lora.view()}};
    Trace trace("t");
    Exec e = Exec::rehearsal(1, {DeviceKind::cuda, 0});
    Phase phase(e, trace);
    DecodeAhead ahead;
    GemmCall call{terms, {}, y.view().row_range(0, rows), true, false, nullptr};
    const GemmPlan in_turn = plan_gemm(call);
    EXPECT_EQ(in_turn.panel, 0u);
    {
      const DecodeAhead::Pass passing(&ahead, e);
      call.ahead = &ahead;
      gemm_nt(e, "product", terms, {}, call.y, &ahead);
      gemm_nt(e, "adapter", {&terms[1], 1}, {}, call.y, &ahead);
    }
    const GemmPlan p = plan_gemm(call);
    const auto whole = [](size_t n) {
      return (n + cuda::kCublasLtAlign - 1) / cuda::kCublasLtAlign * cuda::kCublasLtAlign;
    };
    EXPECT_EQ(p.panel, whole(panel));
    EXPECT_EQ(p.decoded, whole(here));
    EXPECT_EQ(p.packed, in_turn.packed);
    EXPECT_EQ(ahead.bytes(), p.panel);
    for (const size_t i : {0, 1}) {
      EXPECT_STREQ(trace.spans[i].name, "decoded ahead");
      EXPECT_EQ(trace.spans[i].bytes, std::max<size_t>(p.panel, Trace::kAlign));
      EXPECT_GT(trace.spans[i].died, trace.spans.back().died) << "the pass' own";
    }
    EXPECT_FALSE(ahead.passing());
  };
  set_cuda_gemm(CudaGemm::own);
  expect(w.view(), 256, DType::bf16, kW + kLora, 0);
  expect(w.view(), 256, DType::f32, kW, kLora);
  expect(stored.view(), 256, DType::bf16, 0, kLora);
  set_cuda_gemm(CudaGemm::dequant);
  expect(w.view(), 256, DType::bf16, kW + kLora, 0);
  // It is copied beside the adapter's, or stays where rows are off 16 bytes.
  expect(stored.view(), 256, DType::bf16, kW + kLora, kLora);
  set_cuda_gemm(CudaGemm::by_rows);
  expect(w.view(), 64, DType::bf16, 0, 0);  // by the fused kernel
}

TEST_F(DecodesAhead, OnlyInAPassAndAsPlanned) {
  DecodeAhead ahead;
  Trace trace("t");
  Exec e = Exec::rehearsal(1, {DeviceKind::cuda, 0});
  Phase phase(e, trace);
  EXPECT_THROW(ahead.ask(e, 64), Error);
  {
    const DecodeAhead::Pass passing(&ahead, e);
    ahead.ask(e, 100);
    ahead.ask(e, 64);
  }
  EXPECT_EQ(ahead.bytes(), 128u);
  trace.lay_out();
  const testing::TestArena arena({DeviceKind::cuda, 0}, trace.bytes);
  Exec run({DeviceKind::cuda, 0}, 1, arena.data());
  Phase running(run, trace);
  EXPECT_THROW(DecodeAhead::Pass(&ahead, run), Error) << "not started";
}

TEST(GemmChoice, NamesWhereWeightsAreDecoded) {
  EXPECT_TRUE(decodes_ahead_of("ahead"));
  EXPECT_FALSE(decodes_ahead_of("inline"));
  try {
    decodes_ahead_of("1");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::usage);
    EXPECT_STREQ(e.what(), "QLORA_DECODE=1: unknown; use ahead or inline, or unset it");
  }
}

}  // namespace
}  // namespace qlora
