#include "kernels/embedding/embedding.h"

#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/bench.h"

namespace qlora {
namespace {

// 2,048 tokens from all over a table of SmolLM2's vocabulary, into the fp32 stream.
void embedding_rows(benchmark::State& state, Format format) {
  const int64_t rows = 2048, vocab = 49152, cols = state.range(0);
  const TestWeight table(format, vocab, cols, {});
  TestMatrix y(DType::f32, rows, cols, 0);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < rows; ++i) ids.push_back(static_cast<int32_t>(i * 40503 % vocab));
  testing::measure_bytes(state, [&](Exec& e) { embedding(e, ids, table.view(), 1, y.view()); });
}
BENCHMARK_CAPTURE(embedding_rows, bf16, Format::bf16)->Arg(576)->Apply(testing::measured);
BENCHMARK_CAPTURE(embedding_rows, q4_1, Format::q4_1)->Arg(576)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
