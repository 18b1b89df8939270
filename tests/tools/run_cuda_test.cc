// qlora-train on a CUDA device: the whole program, over an emulated card.
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {

// Emulation is slow: two short steps, two rows held out.
Words on_card(const std::string& out, const Words& more) {
  Words words = train_words(
      out, {"--max-steps", "2", "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1",
            "--eval-fraction", "0.1", "--eval-steps", "2", "--lora-dropout", "0.05"});
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(RunCuda, TrainsEvaluatesAndIsResumedByACardAlone) {
  const test::TempFolder scratch;
  const std::string card = scratch / "card", again = scratch / "again";
  const Ended first = run("emulated-qlora-train", on_card(card, {"--device", "cuda"}));
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_NE(first.out.find("device   cuda:0, emulated, sm_80"), std::string::npos) << first.out;
  const std::vector<Json> lines = metrics_of(card);
  ASSERT_FALSE(lines.empty());
  EXPECT_TRUE(lines.back().contains("eval_loss")) << lines.back().dump();
  // auto finds the card; what is computed again gives the same bits.
  const Ended second = run("emulated-qlora-train", on_card(again, {"--gradient-checkpointing", "all"}));
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(adapter_of(again), adapter_of(card));
  EXPECT_EQ(metrics_of(again), lines);
  // Another arithmetic, and no such card.
  const Ended elsewhere =
      run("emulated-qlora-train",
          on_card(card, {"--device", "cpu", "--max-steps", "3", "--resume-from-checkpoint", "last"}));
  EXPECT_EQ(elsewhere.code, 2);
  EXPECT_NE(elsewhere.err.find("cuda sm_80"), std::string::npos) << elsewhere.err;
  const Ended none = run("emulated-qlora-train", on_card(scratch / "none", {"--device", "cuda:3"}));
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(lines_of(none.err).size(), 1u) << none.err;
  EXPECT_NE(none.err.find("give one of these"), std::string::npos) << none.err;
}

// A card too small, and too little of the host's memory: the bytes, before anything is trained.
TEST(RunCuda, ABudgetThatDoesNotFitIsRefused) {
  const test::TempFolder scratch;
  const Ended e =
      run("emulated-qlora-train", on_card(scratch / "out", {"--device", "cuda", "--memory", "20MiB"}));
  EXPECT_EQ(e.code, 4);
  EXPECT_NE(e.err.find("on the CUDA device"), std::string::npos) << e.err;
}

}  // namespace
}  // namespace qlora::testing
