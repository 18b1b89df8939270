// A run's result is a function of its settings alone: not of threads, recomputation, or how often it was
// killed.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

// 5 steps an epoch, the last one short; everything that draws random numbers is on.
const Words kRandom = {"--lora-dropout",
                       "0.05",
                       "--packing",
                       "--max-seq-length",
                       "48",
                       "--num-train-epochs",
                       "2",
                       "--per-device-train-batch-size",
                       "1",
                       "--gradient-accumulation-steps",
                       "4",
                       "--eval-fraction",
                       "0.1"};

Words with(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

int64_t newest_step(const std::string& out) {
  int64_t newest = -1;
  std::error_code ignored;
  for (fs::directory_iterator it(out, ignored), end; !ignored && it != end; it.increment(ignored))
    if (const std::string name = it->path().filename(); name.rfind("checkpoint-", 0) == 0)
      newest = std::max<int64_t>(newest, std::stoll(name.substr(11)));
  return newest;
}

bool holds_partial(const std::string& out) {
  std::error_code ignored;
  for (fs::directory_iterator it(out, ignored), end; !ignored && it != end; it.increment(ignored))
    if (it->path().filename().string().rfind(".partial-", 0) == 0) return true;
  return false;
}

TEST(RunBits, SeedAloneDecides) {
  const test::TempFolder scratch;
  const auto adapter = [&](const char* name, const Words& more) {
    const std::string out = scratch / name;
    const Ended e = run("qlora-train", train_words(out, with(kRandom, more)));
    EXPECT_EQ(e.code, 0) << e.err;
    return adapter_of(out);
  };
  const std::string first = adapter("first", {});
  ASSERT_FALSE(first.empty());
  EXPECT_EQ(adapter("again", {}), first);
  EXPECT_EQ(adapter("threads", {"--threads", "2"}), first);
  EXPECT_EQ(adapter("recomputed", {"--gradient-checkpointing", "all"}), first);
  EXPECT_EQ(adapter("stored", {"--gradient-checkpointing", "none"}), first);
  EXPECT_NE(adapter("seed", {"--seed", "7"}), first);
  EXPECT_EQ(adapter("paged", {"--paged-adamw"}), first);
  // A rank that makes tensors of 4096 elements.
  const std::string eight = adapter("8bit", {"--lora-r", "32", "--optim", "adamw_8bit"});
  EXPECT_EQ(adapter("paged 8bit", {"--lora-r", "32", "--optim", "paged_adamw_8bit"}), eight);
  EXPECT_NE(adapter("32bit", {"--lora-r", "32"}), eight);
}

TEST(RunBits, ConfigFileRerunsTheRun) {
  const test::TempFolder scratch;
  const std::string out = scratch / "out", again = scratch / "again";
  const Words words = with(kRandom, {"--max-steps", "3", "--warmup-steps", "1"});
  ASSERT_EQ(run("qlora-train", train_words(out, words)).code, 0);
  const Ended e = run("qlora-train", {"--config", out + "/config.yaml", "--output-dir", again});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(again), adapter_of(out));
  EXPECT_EQ(metrics_of(again), metrics_of(out));
}

TEST(RunBits, ConfigFileOfARunFromAnAdapterRerunsIt) {
  const test::TempFolder scratch;
  const std::string out = scratch / "out", again = scratch / "again";
  Words words = train_words(out, {"--max-steps", "2", "--init-adapter", golden_model() + "/adapter"});
  words.erase(std::find(words.begin(), words.end(), "--lora-r"),
              std::find(words.begin(), words.end(), "--lora-r") + 2);
  const Ended first = run("qlora-train", words);
  ASSERT_EQ(first.code, 0) << first.err;
  const Ended e = run("qlora-train", {"--config", out + "/config.yaml", "--output-dir", again});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(again), adapter_of(out));
}

struct Kills {
  int all = 0, while_writing = 0;
};

// Starts a run again and again until it is through, killing it on the way. `longest_wait`: microseconds.
void run_through_kills(const Words& words, const std::string& out, long longest_wait, std::mt19937& random,
                       Kills& kills) {
  for (int turn = 0; turn < 200; ++turn) {
    Running r("qlora-train", words);
    const int64_t from = newest_step(out);
    // In turn: while a checkpoint is written, soon after one, and at any moment from the start on.
    if (turn % 3 == 0) r.wait_for([&] { return holds_partial(out); });
    if (turn % 3 == 1) r.wait_for([&] { return newest_step(out) > from; });
    const long waits[] = {200, 2000, longest_wait};
    usleep(static_cast<useconds_t>(static_cast<long>(random()) % waits[turn % 3]));
    kill(r.pid(), SIGKILL);
    const bool writing = holds_partial(out);
    const Ended e = r.wait();
    if (!e.killed) {
      ASSERT_EQ(e.code, 0) << e.err;
      return;
    }
    ++kills.all;
    kills.while_writing += writing;
  }
  FAIL() << "no progress";
}

TEST(RunBits, KilledAnywhereAndResumed) {
  const test::TempFolder scratch;
  const std::string whole = scratch / "whole";
  const Words longer = with(kRandom, {"--num-train-epochs", "6"});
  const auto began = std::chrono::steady_clock::now();
  ASSERT_EQ(run("qlora-train", train_words(whole, longer)).code, 0);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - began;
  std::mt19937 random(1);
  Kills kills;
  // On a machine that lets us sleep too long a run may be through after a kill or two: then another one.
  for (int round = 0; kills.all < 6 || kills.while_writing < 1; ++round) {
    ASSERT_LT(round, 20);
    const std::string out = scratch / ("killed" + std::to_string(round));
    run_through_kills(train_words(out, with(longer, {"--resume-from-checkpoint", "last"})), out,
                      1 + static_cast<long>(took.count() / 3), random, kills);
    EXPECT_EQ(adapter_of(out), adapter_of(whole));
    EXPECT_EQ(slurp(out + "/best/adapter_model.safetensors"),
              slurp(whole + "/best/adapter_model.safetensors"));
    EXPECT_EQ(metrics_of(out), metrics_of(whole));
    EXPECT_FALSE(holds_partial(out));
  }
}

class Signalled : public ::testing::TestWithParam<int> {};

TEST_P(Signalled, LeavesACheckpointWithinAStep) {
  const test::TempFolder scratch;
  const std::string whole = scratch / "whole", out = scratch / "stopped";
  const Words more = {"--max-steps",
                      "30",
                      "--save-steps",
                      "1000",
                      "--num-train-epochs",
                      "1000",
                      "--gradient-accumulation-steps",
                      "8"};
  Ended e;
  size_t before = 0;
  // A run that is through before we are let look is no case: another one.
  for (int tries = 0; tries < 10; ++tries) {
    fs::remove_all(out);
    Running r("qlora-train", train_words(out, more));
    ASSERT_TRUE(r.wait_for([&] { return lines_of(slurp(out + "/metrics.jsonl")).size() >= 3; }));
    kill(r.pid(), GetParam());
    before = lines_of(slurp(out + "/metrics.jsonl")).size();
    e = r.wait();
    if (e.code != 0) break;
  }
  ASSERT_EQ(e.code, 128 + GetParam()) << e.err;
  ASSERT_FALSE(e.killed);
  const std::vector<Json> lines = metrics_of(out);
  EXPECT_LE(lines.size(), before + 2);
  EXPECT_TRUE(fs::exists(out + "/checkpoint-" + std::to_string(lines.back()["step"].get<int64_t>())));
  EXPECT_FALSE(fs::exists(out + "/adapter_model.safetensors"));
  const Ended resumed =
      run("qlora-train", train_words(out, with(more, {"--resume-from-checkpoint", "last"})));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  ASSERT_EQ(run("qlora-train", train_words(whole, more)).code, 0);
  EXPECT_EQ(adapter_of(out), adapter_of(whole));
  EXPECT_EQ(metrics_of(out), metrics_of(whole));
}
INSTANTIATE_TEST_SUITE_P(RunBits, Signalled, ::testing::Values(SIGINT, SIGTERM));

}  // namespace
}  // namespace qlora::testing
