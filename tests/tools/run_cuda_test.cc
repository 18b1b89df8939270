// The programs on a CUDA device, whole, over an emulated card.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/random_llama.h"
#include "tests/support/temp_folder.h"
#include "tests/tools/run_support.h"
#include "tests/tools/text_model.h"

namespace qlora::testing {
namespace {

// Some of the golden rows in a file of their own.
std::string rows_of(const test::TempFolder& folder, size_t count) {
  const std::vector<std::string> lines = lines_of(slurp(golden_rows()));
  std::string text;
  for (size_t i = 0; i < count; ++i) text += lines.at(i) + "\n";
  return folder.write("some.jsonl", text);
}

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
  EXPECT_NE(elsewhere.err.find("cuda sm_80, cuBLASLt 1 on emulated"), std::string::npos) << elsewhere.err;
  const Ended none = run("emulated-qlora-train", on_card(scratch / "none", {"--device", "cuda:3"}));
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(lines_of(none.err).size(), 1u) << none.err;
  EXPECT_NE(none.err.find("give one of these"), std::string::npos) << none.err;
}

// Before anything is taken.
TEST(RunCuda, AnUnknownBodyIsRefused) {
  const test::TempFolder scratch;
  const Ended e = run("emulated-qlora-train", on_card(scratch / "out", {"--device", "cuda"}),
                      {.environment = {{"QLORA_CUDA_BODY", "sm90"}}});
  EXPECT_EQ(e.code, 2) << e.out;
  EXPECT_NE(e.err.find("QLORA_CUDA_BODY=sm90: unknown; use sm80"), std::string::npos) << e.err;
  EXPECT_EQ(lines_of(e.err).size(), 1u) << e.err;
}

// Rows of a tile are part of the arithmetic: what one number began another does not go on with.
TEST(RunCuda, RowsOfATileAreTheRuns) {
  const test::TempFolder scratch;
  const auto by = [&](const char* rows, const Words& more) {
    Words words = on_card(scratch / "out", {"--device", "cuda"});
    words.insert(words.end(), more.begin(), more.end());
    return run("emulated-qlora-train", words, {.environment = {{"QLORA_ROW_TILE", rows}}});
  };
  const Ended wrong = by("100", {});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_NE(wrong.err.find("QLORA_ROW_TILE=100: a multiple of 512"), std::string::npos) << wrong.err;
  ASSERT_EQ(by("1024", {"--max-steps", "1", "--eval-fraction", "0"}).code, 0);
  const Ended other =
      by("512", {"--max-steps", "2", "--eval-fraction", "0", "--resume-from-checkpoint", "last"});
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("tiles of 1024 rows"), std::string::npos) << other.err;
}

// A card too small, and too little of the host's memory: the bytes, before anything is trained.
TEST(RunCuda, ABudgetThatDoesNotFitIsRefused) {
  const test::TempFolder scratch;
  const Ended e =
      run("emulated-qlora-train", on_card(scratch / "out", {"--device", "cuda", "--memory", "20MiB"}));
  EXPECT_EQ(e.code, 4);
  EXPECT_NE(e.err.find("on the CUDA device"), std::string::npos) << e.err;
}

// The numbers that qlora-eval prints, and the logits that it writes.
TEST(RunCuda, EvaluatesOnTheCard) {
  const test::TempFolder scratch;
  const auto evaluated = [&](const std::string& program, const std::string& logits, const Words& more) {
    Words words = {"--model", golden_model(),    "--dataset", rows_of(scratch, 3), "--logits",
                   logits,    "--compute-dtype", "fp32",      "--threads",         "1",
                   "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return run(program, words);
  };
  const std::string there = scratch / "there.safetensors", here = scratch / "here.safetensors";
  const Ended cpu = evaluated("qlora-eval", here, {});
  // auto finds the card, and a line says so.
  const Ended card = evaluated("emulated-qlora-eval", there, {});
  ASSERT_EQ(cpu.code, 0) << cpu.err;
  ASSERT_EQ(card.code, 0) << card.err;
  EXPECT_NE(card.err.find("device   cuda:0, emulated, sm_80"), std::string::npos) << card.err;
  const Json want = Json::parse(cpu.out), got = Json::parse(card.out);
  EXPECT_EQ(got["tokens"], want["tokens"]);
  // The golden tests' bounds (tests/train/llama_test.cc) on a loss and a logit.
  EXPECT_NEAR(got["loss"].get<double>() / want["loss"].get<double>(), 1, 2e-6);
  const std::string a = slurp(here), b = slurp(there);
  ASSERT_EQ(a.size(), b.size());
  uint64_t header = 0;
  std::memcpy(&header, a.data(), sizeof header);
  ASSERT_EQ(a.substr(0, 8 + header), b.substr(0, 8 + header));
  double most = 0, off = 0;
  const Json tensors = Json::parse(a.substr(8, header));
  for (const auto& [name, tensor] : tensors.items()) {
    if (name.rfind("logits.", 0) != 0) continue;
    for (uint64_t at = tensor["data_offsets"][0]; at < tensor["data_offsets"][1].get<uint64_t>(); at += 4) {
      float x = 0, y = 0;
      std::memcpy(&x, a.data() + 8 + header + at, 4);
      std::memcpy(&y, b.data() + 8 + header + at, 4);
      most = std::max<double>(most, std::abs(x));
      off = std::max<double>(off, std::abs(x - y));
    }
  }
  EXPECT_GT(most, 0);
  EXPECT_LE(off, 2 * 2e-5 * most);
}

// A text of qlora-generate, drawn: one seed, one text, alone or among rows; near enough to the CPU's in fp32
// to draw the same.
TEST(RunCuda, GeneratesOnTheCard) {
  const test::TempFolder model, scratch;
  tools::write_model(model);
  const auto text = [&](const std::string& program, const Words& more) {
    Words words = {"--model", model.path(), "--max-new-tokens", "3",    "--temperature", "2",
                   "--seed",  "5",          "--compute-dtype",  "fp32", "--threads",     "1",
                   "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const Ended e = run(program, words);
    EXPECT_EQ(e.code, 0) << e.err;
    return e.code == 0 ? Json::parse(e.out) : Json();
  };
  const Words raw = {"--prompt", "ab", "--raw"};
  const Json here = text("qlora-generate", raw), there = text("emulated-qlora-generate", raw);
  EXPECT_EQ(there["text"], here["text"]);
  EXPECT_EQ(there["tokens"], 3);
  const Words rows = {"--dataset",
                      scratch.write("rows.jsonl", "{\"prompt\": \"ab\"}\n{\"prompt\": \"abc\"}\n")};
  const Json both = text("emulated-qlora-generate", rows), too = text("qlora-generate", rows);
  EXPECT_EQ(both["completions"], too["completions"]);
  EXPECT_EQ(both["completions"][0]["completion"], there["text"]);
}

// Rows answered on the card, as qlora-eval scores them.
TEST(RunCuda, AnswersRowsOnTheCard) {
  const test::TempFolder model, scratch;
  tools::write_model(model);
  const std::string rows = scratch.write("rows.jsonl",
                                         "{\"prompt\": \"ab\", \"completion\": \"c\"}\n"
                                         "{\"prompt\": \"abc\", \"completion\": \"{}\"}\n");
  const auto scores = [&](const std::string& program) {
    const Ended e =
        run(program, {"--model", model.path(), "--dataset", rows, "--generate", "--max-new-tokens", "2",
                      "--compute-dtype", "fp32", "--threads", "1", "--json"});
    EXPECT_EQ(e.code, 0) << e.err;
    Json j = e.code == 0 ? Json::parse(e.out) : Json();
    for (const char* other : {"loss", "perplexity", "tokens_per_second"}) j.erase(other);
    return j;
  };
  const Json there = scores("emulated-qlora-eval");
  EXPECT_EQ(there, scores("qlora-eval"));
  EXPECT_TRUE(there.contains("exact_match")) << there.dump();
}

TEST(RunCuda, WithoutSuchACardItIsOneLine) {
  const Words model = {"--model", golden_model(), "--device"};
  const auto refused = [&](const std::string& program, Words words, const char* device, const char* what) {
    words.insert(words.begin(), model.begin(), model.end());
    words.insert(words.begin() + 3, device);
    const Ended e = run(program, words);
    EXPECT_EQ(e.code, 2) << program;
    EXPECT_EQ(lines_of(e.err).size(), 1u) << e.err;
    EXPECT_NE(e.err.find(what), std::string::npos) << e.err;
  };
  const Words eval = {"--dataset", golden_rows()}, generate = {"--prompt", "a", "--raw"};
  refused("emulated-qlora-eval", eval, "cuda:3", "give one of these");
  refused("emulated-qlora-generate", generate, "cuda:3", "give one of these");
  // The programs as this build has them: without CUDA, or without so many cards.
  refused("qlora-eval", eval, "cuda:99", "; give ");
  refused("qlora-generate", generate, "cuda:99", "; give ");
}

// A report's samples are answered where it was trained.
TEST(RunCuda, AReportsSamples) {
  const test::TempFolder model, scratch;
  test::write_random_llama(model.path(), {1, 32, 32, 1, 1, 272, true}, .2f);
  tools::write_tokenizer(model);
  // As long as an answer may be: what training had must hold its caches.
  const std::string completion(150, 'x'),
      out = scratch / "out",
      data = scratch.write("rows.jsonl", "{\"prompt\": \"ab\", \"completion\": \"" + completion + "\"}");
  const Ended e = run("emulated-qlora-train", {"--model",
                                               model.path(),
                                               "--dataset",
                                               data,
                                               "--eval-dataset",
                                               data,
                                               "--output-dir",
                                               out,
                                               "--max-steps",
                                               "1",
                                               "--per-device-train-batch-size",
                                               "1",
                                               "--gradient-accumulation-steps",
                                               "1",
                                               "--lora-r",
                                               "4",
                                               "--threads",
                                               "1",
                                               "--report-to",
                                               "html",
                                               "--device",
                                               "cuda"});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(e.out.find("without samples"), std::string::npos) << e.out;
  EXPECT_EQ(e.out.find("by the CPU"), std::string::npos) << e.out;
  EXPECT_NE(slurp(out + "/report.html").find(completion), std::string::npos);
}

}  // namespace
}  // namespace qlora::testing
