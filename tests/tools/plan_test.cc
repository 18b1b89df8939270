// qlora-plan beside the run itself: what is printed is what is used.
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>

#include "memory/random.h"
#include "tests/support/random_llama.h"
#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

std::string write_rows(const test::TempFolder& to, int64_t vocab, int rows, int tokens) {
  std::string text;
  for (int r = 0; r < rows; ++r) {
    Json ids = Json::array();
    for (int t = 0; t < tokens; ++t)
      ids.push_back(random_bits(static_cast<uint64_t>(r), static_cast<uint64_t>(t)) %
                    static_cast<uint64_t>(vocab));
    text += Json{{"input_ids", ids}}.dump() + "\n";
  }
  return to.write("rows.jsonl", text);
}

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// VmHWM of another process, in bytes; 0 once it has ended.
uint64_t peak_of(pid_t pid) {
  const std::string status = slurp("/proc/" + std::to_string(pid) + "/status");
  const size_t at = status.find("VmHWM:");
  return at == std::string::npos ? 0 : std::stoull(status.substr(at + 6)) << 10;
}

// No test of the engine knows these shapes. Tolerance: a tenth of what is allowed for a real model (64 MiB),
// since the planned regions are a tenth of its; the process itself is most of what may differ.
TEST(PlanTest, WhatIsPrintedIsWhatIsUsed) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer's own memory is not the program's";
  constexpr double kTolerance = 6.4 * (1 << 20);
  for (const test::LlamaShape& d :
       {test::LlamaShape{5, 192, 448, 6, 2, 3000, true}, test::LlamaShape{3, 320, 800, 5, 5, 1111, false}}) {
    const test::TempFolder scratch;
    test::write_random_llama(scratch.path(), d, .05f);
    const std::string rows = write_rows(scratch, d.vocab, 24, 700), out = scratch / "out";
    std::vector<double> totals;
    for (const char* checkpointing : {"none", "all", "auto"}) {
      Words words = {"--model",
                     scratch.path(),
                     "--dataset",
                     rows,
                     "--output-dir",
                     out,
                     "--max-seq-length",
                     "512",
                     "--per-device-train-batch-size",
                     "4",
                     "--gradient-accumulation-steps",
                     "2",
                     "--gradient-checkpointing",
                     checkpointing,
                     "--threads",
                     "2",
                     "--report-to",
                     "none"};
      uint64_t budget = 0;
      if (checkpointing == std::string("auto")) {
        budget = static_cast<uint64_t>((totals[0] + totals[1]) / 2);
        words.insert(words.end(), {"--memory", std::to_string(budget >> 10) + "KiB"});
      }
      words.push_back("--json");
      const Ended planned = run("qlora-plan", words);
      ASSERT_EQ(planned.code, 0) << planned.err;
      const Json plan = Json::parse(planned.out);
      EXPECT_TRUE(plan["fits"].get<bool>());
      uint64_t sum = 0;
      for (const Json& r : plan["regions"]) sum += r["bytes"].get<uint64_t>();
      EXPECT_EQ(sum, plan["total_bytes"].get<uint64_t>());
      words.insert(words.end(), {"--max-steps", "2", "--overwrite-output-dir"});
      const Ended trained = run("qlora-train", words);
      ASSERT_EQ(trained.code, 0) << trained.err;
      const Json result = Json::parse(slurp(out + "/result.json"));
      const auto used = result["memory_bytes"].get<double>();
      totals.push_back(plan["total_bytes"].get<double>());
      EXPECT_NEAR(used, totals.back(), kTolerance) << checkpointing;
      if (budget > 0) {
        EXPECT_LE(used, static_cast<double>(budget));
      }
    }
    EXPECT_GT(totals[0] - totals[1], 3 * kTolerance) << "proves too little";
  }
}

// What comes after the steps, and what a resumed run reads, takes nothing beside the plan: adapter and
// moments are 20 MiB here, and the budget leaves no room for a second copy of them.
TEST(PlanTest, SavingAndResumingStayWithinTheBudget) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer's own memory is not the program's";
  const test::TempFolder scratch;
  test::write_random_llama(scratch.path(), {3, 192, 448, 6, 2, 3000, true}, .05f);
  const std::string rows = write_rows(scratch, 3000, 24, 100), out = scratch / "out";
  Words words = {"--model",
                 scratch.path(),
                 "--dataset",
                 rows,
                 "--eval-dataset",
                 rows,
                 "--output-dir",
                 out,
                 "--max-seq-length",
                 "128",
                 "--lora-r",
                 "512",
                 "--threads",
                 "2",
                 "--eval-steps",
                 "1",
                 "--save-steps",
                 "1",
                 "--load-best-model-at-end",
                 "--report-to",
                 "html,tensorboard",
                 "--per-device-train-batch-size",
                 "1",
                 "--gradient-accumulation-steps",
                 "1"};
  const Ended planned = run("qlora-plan", [&] {
    Words w = words;
    w.insert(w.end(), {"--gradient-checkpointing", "all", "--json"});
    return w;
  }());
  ASSERT_EQ(planned.code, 0) << planned.err;
  const auto least = Json::parse(planned.out)["total_bytes"].get<uint64_t>();
  // In KiB; 4 MiB is what the engine says that two processes of one program differ by.
  const uint64_t budget = (least >> 10) + 4096;
  words.insert(words.end(), {"--memory", std::to_string(budget) + "KiB"});
  for (const char* steps : {"2", "4"}) {
    Words w = words;
    w.insert(w.end(), {"--max-steps", steps});
    if (steps == std::string("4")) w.insert(w.end(), {"--resume-from-checkpoint", "last"});
    Running trained("qlora-train", w);
    uint64_t peak = 0;  // to the end: result.json's figure is from before the report
    while (trained.stays(std::chrono::milliseconds(2))) peak = std::max(peak, peak_of(trained.pid()));
    const Ended e = trained.wait();
    ASSERT_EQ(e.code, 0) << e.err;
    EXPECT_LE(peak, budget << 10) << steps;
    EXPECT_GT(peak, least - (size_t{8} << 20)) << "the plan is too high";
  }
}

TEST(PlanTest, ConfigAloneAndAPicture) {
  const test::TempFolder scratch;
  const std::string config = std::string(QLORA_GOLDEN) + "/configs/llama3_1_8b/config.json",
                    picture = scratch / "p.svg";
  const Ended e =
      run("qlora-plan", {"--model", config, "--max-seq-length", "2048", "--per-device-train-batch-size", "1",
                         "--memory", "64GB", "--picture", picture, "--json"});
  ASSERT_EQ(e.code, 0) << e.err;
  const Json plan = Json::parse(e.out);
  // 4-bit codes of 32 layers: 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096 elements each.
  uint64_t base = 0;
  for (const Json& r : plan["regions"])
    if (r["name"].get<std::string>().rfind("base/layer", 0) == 0) base += r["bytes"].get<uint64_t>();
  EXPECT_EQ(base, uint64_t{32} * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096) / 2);
  EXPECT_TRUE(plan["fits"].get<bool>());
  EXPECT_EQ(plan["choices"]["x0"], "store");
  EXPECT_EQ(plan["longest_sequence"].get<int64_t>() % 64, 0);
  EXPECT_GT(plan["longest_sequence"].get<int64_t>(), 2048);
  EXPECT_EQ(plan["total_bytes"].get<uint64_t>(), plan["device_bytes"].get<uint64_t>() +
                                                     plan["host_bytes"].get<uint64_t>() +
                                                     plan["file_bytes"].get<uint64_t>());
  const std::string svg = slurp(picture);
  EXPECT_EQ(svg.rfind("<svg", 0), 0u);
  for (const char* part : {"activations", "logits", "all the time", "</svg>"})
    EXPECT_NE(svg.find(part), std::string::npos) << part;

  const Ended trains = run("qlora-train", {"--model", fs::path(config).parent_path(), "--dataset",
                                           golden_rows(), "--output-dir", scratch / "out"});
  EXPECT_EQ(trains.code, 3) << "there is nothing to train";
}

// A card that is not here: a plan is a calculation. Training asks for the card itself.
TEST(PlanTest, ACudaCardThatIsNotHere) {
  // Beside one the host has all it takes, beside the other 32 GB.
  for (const bool limited : {false, true}) {
    const std::string model = limited ? "qwen3_8b" : "llama3_1_8b",
                      folder = std::string(QLORA_GOLDEN) + "/configs/" + model;
    Words words = {"--model",
                   folder,
                   "--max-seq-length",
                   "2048",
                   "--lora-r",
                   "16",
                   "--device",
                   "cuda",
                   "--threads",
                   "2",
                   "--memory",
                   "6GB",
                   "--json",
                   "--per-device-train-batch-size",
                   "1"};
    if (limited) words.insert(words.end(), {"--host-memory", "32GB"});
    const Ended e = run("qlora-plan", words);
    ASSERT_EQ(e.code, 0) << e.err;
    const Json plan = Json::parse(e.out);
    EXPECT_TRUE(plan["fits"].get<bool>()) << model;
    EXPECT_LE(plan["device_bytes"].get<uint64_t>(), 6000000000u);
    EXPECT_GE(plan["longest_sequence"].get<int64_t>(), 2048);
    EXPECT_EQ(plan["total_bytes"].get<uint64_t>(), plan["device_bytes"].get<uint64_t>() +
                                                       plan["host_bytes"].get<uint64_t>() +
                                                       plan["file_bytes"].get<uint64_t>());
    uint64_t context = 0;
    for (const Json& r : plan["regions"])
      if (r["name"] == "process" && r["where"] == "device") context = r["bytes"].get<uint64_t>();
    EXPECT_GT(context, 0u);
    ASSERT_EQ(plan["cards"].size(), 5u);
    int64_t former = 0;
    for (const Json& card : plan["cards"]) {
      // Where the host's memory ends it, a larger card takes no longer one.
      EXPECT_GE(card["longest_sequence"].get<int64_t>(), former + (limited ? 0 : 1));
      former = card["longest_sequence"].get<int64_t>();
      if (limited) {
        EXPECT_LE(card["host_bytes"].get<uint64_t>(), 32000000000u);
      }
    }
    EXPECT_EQ(plan["cards"][4]["host_memory_ends_it"].get<bool>(), limited);
    if (limited) {
      EXPECT_LT(former, 2 * 342733);
    }
  }
  const std::string folder = std::string(QLORA_GOLDEN) + "/configs/llama3_1_8b";
  const Ended none = run("qlora-plan", {"--model", folder, "--device", "cuda"});
  EXPECT_EQ(none.code, 2);
  EXPECT_NE(none.err.find("--memory"), std::string::npos) << none.err;
  const test::TempFolder scratch;
  const Ended trains = run("qlora-train", {"--model", golden_model(), "--dataset", golden_rows(),
                                           "--output-dir", scratch / "out", "--device", "cuda"});
  EXPECT_EQ(trains.code, 2);
  EXPECT_EQ(lines_of(trains.err).size(), 1u) << trains.err;
  const Ended cpu = run("qlora-plan", {"--model", folder, "--host-memory", "1GB"});
  EXPECT_EQ(cpu.code, 2);
}

}  // namespace
}  // namespace qlora::testing
