// qlora-bench-cuda over the emulated card: that every part measures what it says. Its figures mean nothing
// there, but what they are made of does.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/cuda/algorithm_table.h"
#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"
#include "tools/cuda_bench/sizes.h"

namespace qlora::testing {
namespace {

constexpr char kProgram[] = "emulated-bench-cuda";

struct Measured {
  Ended ended;
  std::vector<Json> figures;
  // The one so named.
  Json named(const std::string& what) const {
    for (const Json& f : figures)
      if (f["what"] == what) return f;
    ADD_FAILURE() << "no figure: " << what << "\n" << ended.out << ended.err;
    return {{"rate", NAN}, {"seconds", NAN}};
  }
};

// Of a part that is run to its end.
Measured measured(Words words) {
  const test::TempFolder folder;
  words.insert(words.end(), {"--tiny", "--json", folder / "figures.jsonl"});
  Measured m{run(kProgram, words), {}};
  EXPECT_EQ(m.ended.code, 0) << words[0] << ": " << m.ended.err;
  for (const std::string& line : lines_of(slurp(folder / "figures.jsonl"))) {
    const Json f = Json::parse(line);
    EXPECT_EQ(f["part"], words[0]);
    EXPECT_GT(f["rate"].get<double>(), 0) << line;
    if (f.contains("roof")) {
      EXPECT_NEAR(f["share"].get<double>() * f["roof"].get<double>() / f["rate"].get<double>(), 1, 1e-9)
          << line;
    }
    m.figures.push_back(f);
  }
  EXPECT_FALSE(m.figures.empty()) << words[0];
  return m;
}

// What a call of it is: flops or bytes.
double work_of(const Json& figure) { return figure["rate"].get<double>() * figure["seconds"].get<double>(); }

// The others are in the tests below.
TEST(BenchCuda, RoofsAndTheSmallModel) {
  EXPECT_EQ(lines_of(run(kProgram, {"list"}).out),
            (Words{"roofs", "decode", "step", "small", "attention", "fused", "gemm"}));
  measured({"roofs"}).named("cuBLASLt 64, sustained");
  measured({"small"}).named("tiny, tied, 1 x 8 x 1");
}

TEST(BenchCuda, FiguresAreOfTheWorkThatIsDone) {
  // Codes, a byte for each 64 of them, the scales of these, and what is written.
  EXPECT_NEAR(work_of(measured({"decode"}).named("nf4, double quantization, 64x128")) * 1e9,
              64 * 128 / 2. + 128 + 4 + 2 * 64 * 128, 1);
  EXPECT_NEAR(work_of(measured({"fused"}).named("fused, 5 rows, 64x128")) * 1e9, 64 * 128 / 2. + 128 + 4, 1);
  const Measured gemm = measured({"gemm"});
  for (const char* what : {"library, nt, 65 rows, 64x128", "own, nn, 65 rows, 64x128",
                           "nf4 decoded, library, nt, 65 rows, 64x128"})
    EXPECT_NEAR(work_of(gemm.named(what)) * 1e12, 2. * 65 * 64 * 128, 1) << what;
  EXPECT_NEAR(work_of(gemm.named("library, tn, 65 rows, dB 64x4")) * 1e12, 2. * 65 * 64 * 4, 1);
  // Two products forward and five backward, over the pairs that are seen: 25 / 2 keys a query.
  const Measured attention = measured({"attention"});
  EXPECT_NEAR(work_of(attention.named("forward, head size 16, 24 tokens")) * 1e12, 4. * 4 * 16 * 24 * 12.5,
              1);
  EXPECT_NEAR(work_of(attention.named("backward, head size 16, 24 tokens")) * 1e12, 10. * 4 * 16 * 24 * 12.5,
              1);
}

TEST(BenchCuda, AStepIsItsTokensAndItsKernels) {
  const Measured m =
      measured({"step", "--rows", "2", "--sequence", "8", "--accumulation", "2", "--rank", "4"});
  EXPECT_NEAR(work_of(m.named("tiny, 2 x 8 x 2")), 2 * 8 * 2, 1e-6);
  const double flops = bench::flops_per_token(bench::tiny_sizes().large);
  EXPECT_NEAR(work_of(m.named("tiny, 2 x 8 x 2, model flops")) * 1e12, flops * 2 * 8 * 2, 1e-3 * flops);
  double share = 0;
  std::map<std::string, int> kinds;
  for (const Json& f : m.figures) {
    const std::string what = f["what"];
    if (what.rfind("pass: ", 0) != 0) continue;
    share += f["rate"].get<double>();
    EXPECT_GT(f["seconds"].get<double>(), 0) << f.dump();
    ++kinds[what.substr(6, what.find_first_of("<0123456789") - 6)];
  }
  EXPECT_NEAR(share, 100, 1);
  for (const char* kind :
       {"DecodeKernel", "AttentionForwardKernel", "AttentionBackwardKernel", "cuBLASLt nt "})
    EXPECT_TRUE(kinds.count(kind)) << kind << "\n" << m.ended.out;
}

// 32.1 GFLOP for a token of Llama-3.1-8B in rows of 2048.
TEST(BenchCuda, FlopsOfAToken) {
  const bench::StepSize s = bench::full_sizes().large;
  EXPECT_NEAR(bench::flops_per_token(s) * 1e-9, 32.1, 0.1);
  EXPECT_EQ(s.tokens(), 2 * 2048);
  EXPECT_EQ(s.accumulation, 4);
}

TEST(BenchCuda, TheTimeIsUpBeforeAllIsMeasured) {
  const Ended e = run(kProgram, {"decode", "--tiny", "--budget", "0"});
  EXPECT_EQ(e.code, 1);
  EXPECT_NE(e.out.find("left out, the time is up: nf4, double quantization, 40x64"), std::string::npos)
      << e.out;
}

// What tune writes is the table that a run reads, and what other runs need of it stays.
TEST(BenchCuda, TuneWritesTheTableThatRunsRead) {
  const test::TempFolder folder;
  const std::string path = folder / "table";
  cuda::AlgorithmTable before;
  before.set("another card", "1", "nt 1x8x8 bf16", {7});
  std::ofstream(path) << before.text();
  const Measured m = measured({"tune", "--table", path});
  cuda::AlgorithmTable table = cuda::AlgorithmTable::load(path);
  EXPECT_NE(table.find("another card", "1", "nt 1x8x8 bf16"), nullptr);
  EXPECT_GE(m.figures.size(), 4u);  // forward, backward, the head, dA
  for (const Json& f : m.figures) {
    EXPECT_NE(table.find("emulated", "1", f["what"]), nullptr) << f.dump();
    EXPECT_GE(f["share"].get<double>(), 1) << "slower than the library's own first: " << f.dump();
  }
  const Limits reads{.environment = {{"QLORA_GEMM_TABLE", path}}};
  EXPECT_EQ(run(kProgram, {"step", "--tiny"}, reads).code, 0);
  // An algorithm that the library refuses ends such a run: it was looked up.
  table.set("emulated", "1", m.figures.front()["what"], {99});
  std::ofstream(path) << table.text();
  const Ended refused = run(kProgram, {"step", "--tiny"}, reads);
  EXPECT_EQ(refused.code, 3);
  EXPECT_NE(refused.err.find("make the table again"), std::string::npos) << refused.err;
}

TEST(BenchCuda, WrongUsageIsOneLine) {
  for (const Words& words :
       {Words{"nothing"}, Words{"tune"}, Words{"decode", "--table", "x"}, Words{"decode", "gemm"},
        Words{"decode", "--budget", "-1"}, Words{"decode", "--budget"}, Words{"decode", "--device", "3"}}) {
    const Ended e = run(kProgram, words);
    EXPECT_EQ(e.code, 2) << e.out << e.err;
    EXPECT_EQ(lines_of(e.err).size(), 1u) << e.err;
  }
}

}  // namespace
}  // namespace qlora::testing
