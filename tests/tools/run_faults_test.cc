// The system fails under a program: at each call that writes, at sampled allocations, and a second signal
// while the first one's checkpoint is being written. tests/support/faults is what makes it fail.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

const char* const kLibrary = QLORA_BIN "/libqlora_faults.so";
constexpr int kParts = 4;  // of the calls, so that ctest runs them side by side

class RunFaults : public ::testing::TestWithParam<int> {
 protected:
  test::TempFolder scratch;
  std::string whole = scratch / "whole", out = scratch / "out", told = scratch / "told";
  std::string start = scratch / "start";

  Words words(const std::string& to, const Words& more = {}) const {
    Words all = {"--max-steps",     "2",   "--report-to",        "tensorboard,html",
                 "--eval-fraction", "0.2", "--save-total-limit", "1"};
    all.insert(all.end(), {"--resume-from-checkpoint", "last", "--quiet"});
    all.insert(all.end(), more.begin(), more.end());
    return train_words(to, all);
  }

  // The program under a fault; whether it struck is left in `told`.
  Ended run_under(const std::string& program, const Words& all, const std::string& fault, int64_t at,
                  const std::string& under) {
    fs::remove(told);
    return run(program, all,
               {.environment = {{"LD_PRELOAD", kLibrary},
                                {"QLORA_FAULT", fault},
                                {"QLORA_FAULT_AT", std::to_string(at)},
                                {"QLORA_FAULT_UNDER", under},
                                {"QLORA_FAULT_TOLD", told}}});
  }
  bool struck() const { return fs::exists(told); }

  // `whole`, a run that nothing disturbs, and `start`, one that stands at step 1 of 2.
  void SetUp() override {
    const Ended e = run("qlora-train", words(whole));
    ASSERT_EQ(e.code, 0) << e.err;
    ASSERT_EQ(run_under("qlora-train", words(start), "eio", 1, start + "/.partial-2").code, 5);
    ASSERT_TRUE(fs::exists(start + "/checkpoint-1"));
    ASSERT_FALSE(fs::exists(start + "/checkpoint-2"));
  }
  void begin_at_step_one() {
    fs::remove_all(out);
    fs::copy(start, out, fs::copy_options::recursive);
  }

  // What lies in `out` under a name that counts is whole, and a checkpoint is there to go on from.
  void expect_whole() const {
    const auto same = [&](const std::string& name, const std::string& as) {
      if (!fs::exists(out + "/" + name)) return;
      EXPECT_EQ(slurp(out + "/" + name), slurp(as)) << name;
    };
    const auto checkpoint = [&](const std::string& name, const std::string& as) {
      if (!fs::exists(out + name)) return false;
      for (const auto& file : fs::directory_iterator(as)) {
        const std::string leaf = file.path().filename();
        EXPECT_TRUE(fs::exists(out + name + "/" + leaf)) << name << "/" << leaf;
        if (leaf != "trainer_state.json") same(name + "/" + leaf, file.path());
      }
      return Json::accept(slurp(out + name + "/trainer_state.json"));
    };
    const bool former = checkpoint("/checkpoint-1", start + "/checkpoint-1"),
               later = checkpoint("/checkpoint-2", whole + "/checkpoint-2");
    EXPECT_TRUE(former || later);
    if (former) same("checkpoint-1/trainer_state.json", start + "/checkpoint-1/trainer_state.json");
    checkpoint("/best", whole + "/best");
    same("adapter_model.safetensors", whole + "/adapter_model.safetensors");
    for (const char* name : {"result.json", "adapter_config.json"})
      EXPECT_TRUE(!fs::exists(out + "/" + name) || Json::accept(slurp(out + "/" + name))) << name;
    const std::string report = slurp(out + "/report.html");
    EXPECT_TRUE(report.empty() || report.find("</html>") != std::string::npos);
  }
  void expect_same_bits() const {
    EXPECT_FALSE(adapter_of(whole).empty());
    EXPECT_EQ(adapter_of(out), adapter_of(whole));
    EXPECT_EQ(metrics_of(out), metrics_of(whole));
    for (const char* name : {"optimizer.safetensors", "adapter_model.safetensors"})
      EXPECT_EQ(slurp(out + "/checkpoint-2/" + name), slurp(whole + "/checkpoint-2/" + name)) << name;
    EXPECT_EQ(slurp(out + "/best/adapter_model.safetensors"),
              slurp(whole + "/best/adapter_model.safetensors"));
  }
  void expect_resumed() {
    const Ended e = run("qlora-train", words(out));
    EXPECT_EQ(e.code, 0) << e.err;
    expect_same_bits();
  }
  // One line: program, file, what is wrong; what to do.
  void expect_line(const Ended& e, int code) const {
    EXPECT_EQ(e.code, code) << e.err << slurp(told);
    EXPECT_FALSE(e.killed);
    const std::vector<std::string> lines = lines_of(e.err);
    ASSERT_EQ(lines.size(), 1u) << e.err;
    EXPECT_EQ(lines[0].find("qlora-"), 0u) << e.err;
    EXPECT_NE(lines[0].find("; "), std::string::npos) << e.err;
  }

  // Each call from the first to the last, and one more run that none disturbs. Returns how many there were.
  void train_under_each(const std::string& fault, int64_t first, int64_t stride) {
    int64_t n = first;
    for (;; n += stride) {
      SCOPED_TRACE(fault + " " + std::to_string(n));
      begin_at_step_one();
      const Ended e = run_under("qlora-train", words(out), fault, n, out + "/");
      if (!struck()) {
        EXPECT_EQ(e.code, 0) << e.err;
        expect_same_bits();
        break;
      }
      if (e.code == 0 && fault == "full") {  // what came after took no room
        expect_same_bits();
        continue;
      }
      expect_line(e, 5);
      EXPECT_NE(e.err.find(out), std::string::npos) << e.err;
      expect_whole();
      if (n / stride % 4 == 0) expect_resumed();
      if (HasFailure()) break;
    }
    EXPECT_GT(n, 60) << "so few calls are no run";
  }
};

using RunFaultsParts = RunFaults;

TEST_P(RunFaultsParts, EachCallOfTheDisk) { train_under_each("eio", 1 + GetParam(), kParts); }

TEST_P(RunFaultsParts, FullFromEachCallOn) { train_under_each("full", 1 + 4 * GetParam(), 4 * kParts); }

// Exit 4, or the same bits where an allocation was only asked for speed.
TEST_P(RunFaultsParts, SampledAllocations) {
  for (const char* fault : {"memory", "starve"}) {
    // A geometric row, of which the parts take turns.
    const double ratio = fault == std::string("memory") ? 1.25 : 1.5;
    int64_t n = 0;
    for (int64_t runs = 0;; ++runs) {
      n = std::max(n + 1,
                   static_cast<int64_t>(std::pow(ratio, runs + static_cast<double>(GetParam()) / kParts)));
      SCOPED_TRACE(std::string(fault) + " " + std::to_string(n));
      begin_at_step_one();
      const Ended e = run_under("qlora-train", words(out, {"--threads", "2"}), fault, n, out + "/");
      if (e.code == 0) {
        expect_same_bits();
      } else {
        expect_line(e, 4);
        expect_whole();
        if (runs % 8 == 0) expect_resumed();
      }
      if (!struck() || HasFailure()) break;
    }
    EXPECT_GT(n, 10000);
  }
}
INSTANTIATE_TEST_SUITE_P(Part, RunFaultsParts, ::testing::Range(0, kParts));

TEST_F(RunFaults, ShortWritesGoOn) {
  begin_at_step_one();
  const Ended e = run_under("qlora-train", words(out), "brief", 1, out + "/");
  ASSERT_EQ(e.code, 0) << e.err;
  ASSERT_TRUE(struck());
  expect_same_bits();
  EXPECT_EQ(slurp(out + "/config.yaml").size(), slurp(whole + "/config.yaml").size() - 2) << "out, not whole";
  EXPECT_NE(slurp(out + "/report.html").find("</html>"), std::string::npos);
}

TEST_F(RunFaults, EachMapAndEachThread) {
  for (const auto& [fault, code] : {std::pair{"map", 4}, {"thread", 5}}) {
    int64_t n = 1;
    for (;; ++n) {
      SCOPED_TRACE(std::string(fault) + " " + std::to_string(n));
      begin_at_step_one();
      const Ended e = run_under("qlora-train", words(out, {"--threads", "3"}), fault, n, "");
      if (e.code == 0)
        expect_same_bits();
      else
        expect_line(e, code);
      if (!struck() || HasFailure()) break;
    }
    EXPECT_GT(n, 1);
  }
}

TEST_F(RunFaults, QuantizingAtEachCall) {
  const auto quantize = [&](const std::string& to) {
    return Words{"--model", golden_model(), "--output-dir", to, "--quiet", "--threads", "1"};
  };
  const std::string good = scratch / "good", to = scratch / "to";
  ASSERT_EQ(run("qlora-quantize", quantize(good)).code, 0);
  const auto same = [&](const fs::path& folder) {
    for (const auto& file : fs::directory_iterator(folder)) {
      const std::string name = file.path().filename();
      if (name[0] == '.') continue;
      EXPECT_EQ(slurp(file.path()), slurp(good + "/" + name)) << name;
    }
  };
  for (const char* fault : {"eio", "full", "brief"})
    for (int64_t n = 1;; ++n) {
      SCOPED_TRACE(std::string(fault) + " " + std::to_string(n));
      fs::remove_all(to);
      const Ended e = run_under("qlora-quantize", quantize(to), fault, n, to);
      if (e.code == 0) {
        EXPECT_TRUE(!struck() || fault == std::string("brief"));
        EXPECT_EQ(slurp(to + "/config.json"), slurp(good + "/config.json"));
      } else {
        expect_line(e, 5);
        EXPECT_NE(e.err.find(to), std::string::npos) << e.err;
      }
      if (fs::exists(to)) same(to);
      if (!struck() || HasFailure()) break;
    }
}

// Whether a signal sent to the process has not come to it.
bool awaits_signal(pid_t pid) {
  const std::string status = slurp("/proc/" + std::to_string(pid) + "/status");
  for (const char* set : {"SigPnd:", "ShdPnd:"})
    if (const size_t at = status.find(set); at != std::string::npos)
      if (std::stoull(status.substr(at + 7), nullptr, 16) != 0) return true;
  return false;
}

// The first signal asks for a checkpoint; one that comes while it is being written ends the run at once.
TEST_F(RunFaults, SecondSignalLeavesAtOnce) {
  for (const int second : {SIGINT, SIGTERM}) {
    const Words more = {"--max-steps", "30", "--num-train-epochs", "1000", "--save-steps", "2"};
    fs::remove_all(out);
    fs::remove(told);
    const std::string again = scratch / "again";
    // The disk hangs in the checkpoint of step 4.
    Running r("qlora-train", words(out, more),
              {.environment = {{"LD_PRELOAD", kLibrary},
                               {"QLORA_FAULT", "pause"},
                               {"QLORA_FAULT_AT", "3"},
                               {"QLORA_FAULT_UNDER", out + "/.partial-4/"},
                               {"QLORA_FAULT_TOLD", told}}});
    ASSERT_TRUE(r.wait_for([&] { return struck(); }));
    kill(r.pid(), SIGINT);
    // Two of one number would be one while the first is not yet taken.
    ASSERT_TRUE(r.wait_for([&] { return !awaits_signal(r.pid()); }));
    EXPECT_TRUE(r.stays(std::chrono::milliseconds(100))) << "the first signal waits for the checkpoint";
    const auto began = std::chrono::steady_clock::now();
    kill(r.pid(), second);
    const Ended e = r.wait();
    EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(20));  // it hangs for a minute
    EXPECT_EQ(e.code, 128 + second) << e.err;
    EXPECT_FALSE(e.killed);
    EXPECT_TRUE(fs::exists(out + "/checkpoint-2"));
    EXPECT_FALSE(fs::exists(out + "/checkpoint-4"));
    ASSERT_EQ(run("qlora-train", words(out, more)).code, 0);
    ASSERT_EQ(run("qlora-train", words(again, more)).code, 0);  // where it is there, it is through at once
    EXPECT_EQ(adapter_of(out), adapter_of(again));
    EXPECT_EQ(metrics_of(out), metrics_of(again));
  }
}

}  // namespace
}  // namespace qlora::testing
