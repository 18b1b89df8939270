// What goes wrong in a run: one line that says what, the documented exit code, and nothing half-written.
#include <gtest/gtest.h>
#include <signal.h>

#include <cstring>
#include <filesystem>
#include <regex>

#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

// The one line on stderr that an error is, with every word in it.
void expect_error(const Ended& e, int code, const std::vector<std::string>& says) {
  EXPECT_EQ(e.code, code) << e.err;
  EXPECT_FALSE(e.killed);
  const std::vector<std::string> lines = lines_of(e.err);
  ASSERT_EQ(lines.size(), 1u) << e.err;
  EXPECT_EQ(lines[0].find("qlora-"), 0u) << e.err;
  for (const std::string& word : says)
    EXPECT_NE(lines[0].find(word), std::string::npos) << word << "\n" << e.err;
}

class RunFailures : public ::testing::Test {
 protected:
  test::TempFolder scratch;
  std::string out = scratch / "out";

  Ended train(const Words& more) { return run("qlora-train", train_words(out, more)); }
  // A copy of the tiny model that may be broken.
  std::string model_copy() {
    const fs::path to = scratch / "model";
    fs::create_directories(to);
    for (const char* file : {"config.json", "model.safetensors"}) {
      fs::copy_file(golden_model() + "/" + file, to / file);
      fs::permissions(to / file, fs::perms::owner_all);
    }
    return to;
  }
};

TEST_F(RunFailures, UnknownFlag) {
  expect_error(train({"--lerning-rate", "1"}), 2, {"lerning-rate", "--learning-rate"});
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(RunFailures, AbsentModel) {
  const std::string model = scratch / "absent";
  expect_error(train({"--model", model}), 3, {model});
  EXPECT_FALSE(fs::exists(out)) << "a folder made for nothing stays";
}

TEST_F(RunFailures, TruncatedWeights) {
  const std::string model = model_copy(), file = model + "/model.safetensors";
  fs::resize_file(file, fs::file_size(file) - 10);
  expect_error(train({"--model", model}), 3, {file});
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(RunFailures, UnsupportedFamily) {
  const std::string model = model_copy();
  std::string config = slurp(model + "/config.json");
  config = std::regex_replace(config, std::regex("\"model_type\": \"llama\""), "\"model_type\": \"mamba\"");
  config = std::regex_replace(config, std::regex("LlamaForCausalLM"), "MambaForCausalLM");
  scratch.write("model/config.json", config);
  expect_error(train({"--model", model}), 3, {model, "mamba"});
}

TEST_F(RunFailures, NanWeight) {
  const std::string model = model_copy(), file = model + "/model.safetensors";
  std::string bytes = slurp(file);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  const Json j = Json::parse(bytes.substr(8, header));
  const char* name = "model.layers.1.mlp.up_proj.weight";
  const size_t at = 8 + header + j[name]["data_offsets"][0].get<size_t>() + 2 * 5;
  bytes[at] = bytes[at + 1] = '\xff';  // bf16 NaN
  scratch.write("model/model.safetensors", bytes);
  for (const char* bits : {"4", "8", "16"})
    expect_error(train({"--model", model, "--bits", bits}), 3, {file, name, "5"});
}

TEST_F(RunFailures, BrokenRow) {
  const std::vector<std::string> rows = lines_of(slurp(golden_rows()));
  const std::string data =
      scratch.write("data.jsonl", rows[0] + "\n" + rows[1] + "\n{\"input_ids\": [1,\n" + rows[2] + "\n");
  expect_error(train({"--dataset", data}), 3, {data + ": line 3"});
}

TEST_F(RunFailures, TextWithoutATokenizer) {
  const std::string data = scratch.write("data.jsonl", "{\"text\": \"hello\"}\n");
  expect_error(train({"--dataset", data}), 3, {data + ": line 1", "tokenizer"});
}

TEST_F(RunFailures, MaskedRows) {
  const std::string masked = "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n";
  const std::string some = scratch.write("some.jsonl", masked + slurp(golden_rows()) + masked);
  const Ended e = train({"--dataset", some, "--max-steps", "1"});
  EXPECT_EQ(e.code, 0) << e.err;
  EXPECT_TRUE(std::regex_search(e.out + e.err, std::regex("\\b2 rows[^\n]*(label|loss)"))) << e.out << e.err;
  const std::string all = scratch.write("all.jsonl", masked + masked);
  expect_error(train({"--dataset", all, "--overwrite-output-dir"}), 3, {all});
  EXPECT_FALSE(adapter_of(out).empty()) << "bad data cost the former run";
}

// What is said to fit does fit: a greater budget, and a smaller batch.
TEST_F(RunFailures, MemoryBudgetTooSmall) {
  const auto named = [](const Ended& e, const char* pattern) {
    std::smatch found;
    EXPECT_TRUE(std::regex_search(e.err, found, std::regex(pattern))) << e.err;
    return found[1].str();
  };
  const auto budget = [](uint64_t mib) { return std::to_string(mib) + "MiB"; };
  const Ended e = train({"--memory", "4MiB", "--threads", "1"});
  expect_error(e, 4, {"missing", "MiB", "--memory"});
  EXPECT_FALSE(fs::exists(out)) << "a folder made for nothing stays";
  const uint64_t enough = std::stoull(named(e, "--memory ([0-9]+)MiB"));
  const Words one = {"--max-steps", "1", "--threads", "1", "--overwrite-output-dir"};
  const auto with = [&](Words more) {
    more.insert(more.end(), one.begin(), one.end());
    return train(more);
  };
  const Ended fits = with({"--memory", budget(enough)});
  EXPECT_EQ(fits.code, 0) << fits.err;

  // A thousand rows at a time, where there is room for some: more than two processes of one program differ
  // by.
  std::string rows;
  for (int i = 0; i < 50; ++i) rows += slurp(golden_rows());
  const std::string data = scratch.write("rows.jsonl", rows);
  const Words large = {"--dataset", data,       "--per-device-train-batch-size",
                       "1000",      "--memory", budget(enough + 32)};
  const Ended refused = with(large);
  expect_error(refused, 4, {"missing"});
  const std::string batch = named(refused, "--per-device-train-batch-size ([0-9]+)");
  EXPECT_GT(std::stoi(batch), 1);
  Words smaller = large;
  smaller[3] = batch;
  const Ended trained = with(smaller);
  EXPECT_EQ(trained.code, 0) << trained.err;
}

// Plans are made in addresses alone: a limit on those is no bug of ours.
TEST_F(RunFailures, AddressSpaceLimited) {
#ifndef __SANITIZE_ADDRESS__  // the sanitizer's own shadow is terabytes
  const Ended e =
      run("qlora-train", train_words(out, {"--max-steps", "1"}), {.addresses = uint64_t{2} << 30});
  EXPECT_EQ(e.code, 0) << e.err;
#endif
}

TEST_F(RunFailures, QuantizingOntoTheModelItself) {
  const std::string model = model_copy(), before = slurp(model + "/model.safetensors");
  expect_error(run("qlora-quantize",
                   {"--model", model, "--output-dir", model + "/.", "--overwrite-output-dir", "--quiet"}),
               2, {model, "--output-dir"});
  EXPECT_EQ(slurp(model + "/model.safetensors"), before);
}

TEST_F(RunFailures, TrainingOntoTheModelItself) {
  const std::string model = model_copy();
  scratch.write("model/README.md", "the model's own");
  expect_error(run("qlora-train", train_words(model + "/.", {"--model", model, "--overwrite-output-dir"})), 2,
               {model, "--output-dir"});
  EXPECT_EQ(slurp(model + "/README.md"), "the model's own");
}

TEST_F(RunFailures, OutputIsALinkToNothing) {
  fs::create_symlink(scratch / "absent", out);
  expect_error(train({}), 2, {out, "a link to nothing"});
}

TEST_F(RunFailures, WhatNeedsAnEvaluation) {
  expect_error(train({"--load-best-model-at-end"}), 2, {"--load-best-model-at-end", "--eval-dataset"});
  expect_error(train({"--early-stopping-patience", "2"}), 2, {"--early-stopping-patience", "--eval-dataset"});
  EXPECT_EQ(train({"--eval-steps", "5", "--eval-fraction", "0", "--dry-run"}).code, 0) << "told to be off";
  expect_error(train({"--eval-steps", "5"}), 2, {"--eval-steps", "nothing is evaluated", "--eval-dataset"});
}

TEST_F(RunFailures, DataOfAWeight) {
  expect_error(train({"--dataset", golden_rows() + ":0.5"}), 3, {golden_rows() + ":0.5", "weights"});
}

TEST_F(RunFailures, QuantizingWithoutRoom) {
  const Ended e =
      run("qlora-quantize", {"--model", golden_model(), "--output-dir", out, "--quiet"}, {.file = 50000});
  expect_error(e, 5, {out});
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(RunFailures, Diverged) {
  const Ended e = train({"--learning-rate", "1e30", "--num-train-epochs", "3", "--report-to", "tensorboard"});
  expect_error(e, 6, {out, "step", "--learning-rate"});
  EXPECT_FALSE(fs::exists(out + "/adapter_model.safetensors"));
  // What stands is whole.
  const Ended again = train({"--learning-rate", "1e30", "--num-train-epochs", "3", "--report-to",
                             "tensorboard", "--resume-from-checkpoint", "last"});
  expect_error(again, 6, {out});
  EXPECT_NE(again.out.find("resuming from"), std::string::npos) << again.out;
}

// A variable is no request of this one run: what has no use for it says so, and works.
TEST_F(RunFailures, VariablesOfACardOnACpu) {
  const Words words = train_words(out, {"--device", "cpu", "--dry-run"});
  const Ended e = run("qlora-train", words, {.environment = {{"QLORA_GEMM", "fused"}}});
  EXPECT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(lines_of(e.err),
            (Words{"warning: QLORA_GEMM=fused: has no effect on a CPU; give --device cuda, or "
                   "unset it"}));
  EXPECT_EQ(run("qlora-train", words, {.environment = {{"QLORA_GEMM", ""}}}).err, "");
}

TEST_F(RunFailures, ColumnsOfAnotherFormat) {
  expect_error(train({"--dataset-format", "tokens", "--columns", "prompt=question"}), 2,
               {"--columns prompt=question", "rows of tokens have no prompt"});
}

TEST_F(RunFailures, DryRunTouchesNothing) {
  const Ended e = train({"--dry-run"});
  EXPECT_EQ(e.code, 0) << e.err;
  EXPECT_NE(e.out.find("memory"), std::string::npos) << e.out;
  const Ended json = train({"--dry-run", "--json"});
  EXPECT_TRUE(Json::parse(json.out)["fits"].get<bool>()) << json.err;
  EXPECT_FALSE(fs::exists(out));
}

// Every write beyond a size fails, as on a full disk: at whichever file it strikes, the exit is 5, no file
// lies half-written under a name that counts, and the run goes on afterwards to the same bits.
TEST_F(RunFailures, NoSpaceLeft) {
  const std::string whole = scratch / "whole";
  const Words more = {"--max-steps",
                      "4",
                      "--report-to",
                      "tensorboard,html",
                      "--eval-fraction",
                      "0.2",
                      "--save-total-limit",
                      "9",
                      "--resume-from-checkpoint",
                      "last"};
  ASSERT_EQ(run("qlora-train", train_words(whole, more)).code, 0);
  fs::copy(whole, out, fs::copy_options::recursive);
  for (const char* later : {"checkpoint-3", "checkpoint-4", "adapter_model.safetensors"})
    fs::remove_all(out + "/" + later);
  const std::string checkpoint = out + "/checkpoint-2/trainer_state.json", before = slurp(checkpoint);
  ASSERT_FALSE(before.empty());
  const uint64_t adapter = adapter_of(whole).size();
  for (uint64_t limit : {uint64_t{400}, uint64_t{900}, adapter / 2, adapter + 100}) {
    const Ended e = run("qlora-train", train_words(out, more), {.file = limit});
    expect_error(e, 5, {scratch.path()});
    EXPECT_EQ(slurp(checkpoint), before) << limit;
    EXPECT_FALSE(fs::exists(out + "/checkpoint-3")) << limit;
    EXPECT_EQ(adapter_of(out), "") << limit;
  }
  const Ended e = run("qlora-train", train_words(out, more));
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(adapter_of(out), adapter_of(whole));
  EXPECT_EQ(metrics_of(out), metrics_of(whole));
}

}  // namespace
}  // namespace qlora::testing
