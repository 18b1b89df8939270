// Output folders that are used or hold a run, and what a resume takes, refuses and says.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>

#include "kernels/common/cpu_facts.h"
#include "kernels/common/isa.h"
#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

class RunResume : public ::testing::Test {
 protected:
  test::TempFolder scratch;
  std::string out = scratch / "out";

  Ended train(const Words& more) { return run("qlora-train", train_words(out, more)); }
  Ended resume(Words more, const std::string& from = "last") {
    more.insert(more.end(), {"--resume-from-checkpoint", from});
    return train(more);
  }
};

void expect_refused(const Ended& e, int code, const std::vector<std::string>& says) {
  EXPECT_EQ(e.code, code) << e.out << e.err;
  const std::vector<std::string> lines = lines_of(e.err);
  ASSERT_EQ(lines.size(), 1u) << e.err;
  for (const std::string& word : says)
    EXPECT_NE(lines[0].find(word), std::string::npos) << word << "\n" << e.err;
}

TEST_F(RunResume, FolderInUse) {
  Running first("qlora-train", train_words(out, {"--max-steps", "100000"}));
  ASSERT_TRUE(first.wait_for([&] { return !slurp(out + "/metrics.jsonl").empty(); }));
  for (const Words& more :
       {Words{}, Words{"--overwrite-output-dir"}, Words{"--resume-from-checkpoint", "last"}})
    expect_refused(train(more), 2, {out, "another process"});
  kill(first.pid(), SIGKILL);
  first.wait();
}

TEST_F(RunResume, FolderHoldsARun) {
  ASSERT_EQ(train({"--max-steps", "2"}).code, 0);
  const std::string former = adapter_of(out);
  expect_refused(train({"--max-steps", "2"}), 2, {out, "--resume-from-checkpoint", "--overwrite-output-dir"});
  EXPECT_EQ(adapter_of(out), former);
  std::ofstream(out + "/notes.txt") << "mine";
  expect_refused(train({"--overwrite-output-dir", "--model", out + "/absent"}), 3, {"absent"});
  EXPECT_EQ(adapter_of(out), former) << "a mistyped path cost a finished run";
  const Ended e = train({"--max-steps", "1", "--overwrite-output-dir", "--seed", "7"});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_NE(adapter_of(out), former);
  EXPECT_FALSE(fs::exists(out + "/checkpoint-2"));
  EXPECT_EQ(slurp(out + "/notes.txt"), "mine");
}

TEST_F(RunResume, NothingToResumeStartsAtStepZero) {
  const Ended e = resume({"--max-steps", "1"});
  EXPECT_EQ(e.code, 0) << e.err;
  EXPECT_NE(e.out.find("no checkpoint yet, starting at step 0"), std::string::npos) << e.out;
}

TEST_F(RunResume, PathWithoutACheckpoint) {
  expect_refused(resume({}, scratch / "checkpoint-9"), 3, {"checkpoint-9"});
  expect_refused(resume({}, scratch.path()), 3, {scratch.path()});
}

TEST_F(RunResume, LeftoversOfARunThatDiedEarlyAreCleared) {
  for (const char* file : {"metrics.jsonl", "config.yaml", ".partial-1/adapter_model.safetensors",
                           ".metrics.jsonl.partial-7-0", ".best.partial/README.md"})
    scratch.write(std::string("out/") + file, "{\"step\": 1}\n");
  ASSERT_EQ(train({"--max-steps", "1"}).code, 0);
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(name == ".lock" || name[0] != '.') << name;
  }
  EXPECT_EQ(metrics_of(out).size(), 1u);
}

// A checkpoint goes on with the ISA it was made with alone; one that the machine has not is refused at once.
TEST_F(RunResume, TheIsaIsASetting) {
  const auto on = [&](Isa isa, const std::string& to, Words words) {
    words.insert(words.end(), {"--compute-dtype", "bf16"});
    return run("qlora-train", train_words(to, words), {.environment = {{"QLORA_ISA", name_of(isa)}}});
  };
  for (const Isa isa : kIsas) {
    const std::string to = scratch / name_of(isa);
    const Ended first = on(isa, to, {"--max-steps", "1"});
    if (!supported(isa)) {
      expect_refused(
          first, 2,
          {std::string("QLORA_ISA=") + name_of(isa) + ": this machine lacks " + lacking(isa, this_cpu())});
      continue;
    }
    ASSERT_EQ(first.code, 0) << first.err;
    const Words further{"--max-steps", "2", "--resume-from-checkpoint", "last"};
    for (const Isa other : kIsas)
      if (other != isa && supported(other))
        expect_refused(on(other, to, further), 2,
                       {std::string("isa ") + name_of(isa) + ", this run has " + name_of(other)});
    const Ended again = on(isa, to, further);
    EXPECT_EQ(again.code, 0) << again.err;
  }
}

TEST_F(RunResume, ChangedSettingIsRefusedWithBothValues) {
  ASSERT_EQ(train({"--max-steps", "2"}).code, 0);
  expect_refused(resume({"--max-steps", "3", "--learning-rate", "0.02"}), 2,
                 {"learning-rate", "0.01", "0.02"});
  expect_refused(resume({"--max-steps", "3", "--lora-r", "8"}), 2, {"lora-r", "4", "8"});
  expect_refused(resume({"--max-steps", "3", "--optim", "adamw_8bit"}), 2, {"--optim adamw,", "adamw_8bit"});
  expect_refused(resume({"--max-steps", "1"}), 2, {"2", "1", "steps"});
  const std::string data = scratch.write("data.jsonl", slurp(golden_rows()) + "\n");
  expect_refused(resume({"--max-steps", "3", "--dataset", data}), 2, {"data"});
  expect_refused(resume({"--max-steps", "3", "--eval-dataset", golden_rows()}), 2, {"eval data"});
}

TEST_F(RunResume, MoreStepsAreSaidAndOtherIntervalsAllowed) {
  ASSERT_EQ(train({"--max-steps", "2"}).code, 0);
  const Ended e = resume({"--max-steps", "4", "--threads", "2", "--save-steps", "3", "--logging-steps", "2",
                          "--gradient-checkpointing", "all", "--memory", "4GiB"});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_NE(e.out.find("the schedule is now one of 4 steps"), std::string::npos) << e.out;
  EXPECT_EQ(metrics_of(out).back()["step"], 4);
}

TEST_F(RunResume, FinishedRunRewritesItsAdapter) {
  const Words words = {"--max-steps", "2", "--eval-fraction", "0.2", "--report-to", "html,tensorboard"};
  ASSERT_EQ(train(words).code, 0);
  const std::string former = adapter_of(out);
  const std::vector<Json> metrics = metrics_of(out);
  fs::remove(out + "/adapter_model.safetensors");
  fs::remove(out + "/result.json");
  const Ended e = resume(words);
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(out), former);
  EXPECT_EQ(metrics_of(out), metrics);
  EXPECT_TRUE(fs::exists(out + "/result.json"));
}

TEST_F(RunResume, BrokenNewestCheckpointIsPassedOver) {
  const Words words = {"--max-steps", "5", "--num-train-epochs", "9"};
  const std::string whole = scratch / "whole";
  ASSERT_EQ(run("qlora-train", train_words(whole, words)).code, 0);
  Words shorter = words;
  shorter.insert(shorter.end(), {"--max-steps", "4"});
  ASSERT_EQ(train(shorter).code, 0);
  const std::string state = out + "/checkpoint-4/optimizer.safetensors";
  std::string bytes = slurp(state);
  bytes[bytes.size() - 3] ^= 1;
  std::ofstream(state, std::ios::binary) << bytes;
  const std::string newest = out + "/checkpoint-4", former = out + "/checkpoint-3";
  const Ended e = resume({"--max-steps", "4", "--num-train-epochs", "9", "--save-total-limit", "1"});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_NE(e.err.find("checkpoint-4"), std::string::npos) << e.err;
  EXPECT_NE(e.out.find("resuming from " + former), std::string::npos) << e.out;
  expect_refused(resume(words, newest + "x"), 3, {newest + "x"});
}

TEST_F(RunResume, GoingBackReplacesTheLaterCheckpoints) {
  const Words words = {"--max-steps", "4", "--save-total-limit", "9"};
  ASSERT_EQ(train(words).code, 0);
  const std::string former = adapter_of(out);
  const std::vector<Json> metrics = metrics_of(out);
  const Ended e = resume(words, out + "/checkpoint-1");
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(out), former);
  EXPECT_EQ(metrics_of(out), metrics);
}

TEST_F(RunResume, BestIsTheLowestAndEndsTheRun) {
  // A rate so high that evaluations soon get worse.
  const Words words = {"--max-steps",
                       "12",
                       "--learning-rate",
                       "0.3",
                       "--eval-dataset",
                       golden_rows(),
                       "--eval-steps",
                       "1",
                       "--early-stopping-patience",
                       "2",
                       "--load-best-model-at-end",
                       "--max-seq-length",
                       "64"};
  const Ended e = train(words);
  ASSERT_EQ(e.code, 0) << e.err;
  double lowest = 1e30;
  int64_t lowest_step = -1, last = 0;
  for (const Json& line : metrics_of(out))
    if (line.contains("eval_loss")) {
      last = line["step"];
      if (line["eval_loss"].get<double>() < lowest) {
        lowest = line["eval_loss"];
        lowest_step = last;
      }
    }
  EXPECT_LT(last, 12) << "never stopped";
  EXPECT_EQ(last, lowest_step + 2);
  EXPECT_EQ(adapter_of(out), slurp(out + "/best/adapter_model.safetensors"));
  const Json result = Json::parse(slurp(out + "/result.json"));
  EXPECT_TRUE(result["stopped_early"].get<bool>());
  EXPECT_EQ(result["best_eval"]["step"], lowest_step);
  const std::string former = adapter_of(out);
  ASSERT_EQ(resume(words).code, 0);
  EXPECT_EQ(adapter_of(out), former);
}

TEST_F(RunResume, ACheckpointElsewhereGoesIntoAFreshFolder) {
  const std::string other = scratch / "other";
  const Words words = {"--max-steps", "3", "--save-total-limit", "9"};
  ASSERT_EQ(train(words).code, 0);
  ASSERT_EQ(run("qlora-train", train_words(other, words)).code, 0);
  Words from = words;
  from.insert(from.end(), {"--resume-from-checkpoint", out + "/checkpoint-1"});
  expect_refused(run("qlora-train", train_words(other, from)), 2, {other, "holds a run"});
  EXPECT_TRUE(fs::exists(other + "/checkpoint-3"));
  const std::string fresh = scratch / "fresh";
  ASSERT_EQ(run("qlora-train", train_words(fresh, from)).code, 0);
  EXPECT_EQ(adapter_of(fresh), adapter_of(out));
  from.back() += "/";
  from[from.size() - 1] = out + "/checkpoint-1/";
  EXPECT_EQ(train(from).code, 0) << "a slash at the end is the same folder";
}

// The program that measures agrees with what the run said, on both halves of the adapter's way.
TEST_F(RunResume, EvalGivesTheTrainersLoss) {
  for (const char* compute : {"fp32", "bf16"}) {
    ASSERT_EQ(train({"--max-steps", "4", "--eval-dataset", golden_rows(), "--compute-dtype", compute,
                     "--bits", "4", "--overwrite-output-dir"})
                  .code,
              0);
    const Json result = Json::parse(slurp(out + "/result.json"));
    for (const auto& [adapter, field] : {std::pair{out, "last_eval"}, {std::string("none"), "first_eval"}}) {
      const Ended e = run("qlora-eval", {"--model", golden_model(), "--adapter", adapter, "--dataset",
                                         golden_rows(), "--compute-dtype", compute, "--bits", "4", "--json",
                                         "--per-device-eval-batch-size", "3", "--max-seq-length", "64"});
      ASSERT_EQ(e.code, 0) << e.err;
      const Json measured = Json::parse(e.out);
      EXPECT_NEAR(measured["loss"].get<double>(), result[field]["eval_loss"].get<double>(), 1e-5) << compute;
      EXPECT_EQ(measured["tokens"], result[field]["eval_tokens"]);
      EXPECT_NEAR(measured["accuracy"].get<double>(), result[field]["eval_accuracy"].get<double>(), 1e-9);
    }
  }
}

// A quantized folder trains to the same bits as its 16-bit original quantized on the way in.
TEST_F(RunResume, QuantizedFolderTrainsTheSame) {
  const std::string folder = scratch / "nf4", again = scratch / "again";
  const Ended q =
      run("qlora-quantize", {"--model", golden_model(), "--output-dir", folder, "--threads", "1"});
  ASSERT_EQ(q.code, 0) << q.err;
  ASSERT_EQ(train({"--max-steps", "3"}).code, 0);
  const Ended e = run("qlora-train", train_words(again, {"--max-steps", "3", "--model", folder}));
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(again), adapter_of(out));
}

}  // namespace
}  // namespace qlora::testing
