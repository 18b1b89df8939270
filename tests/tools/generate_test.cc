#include <fstream>

#include "tests/tools/text_model.h"
#include "tools/common/generate_modes.h"
#include "tools/common/sampling.h"
#include "tools/common/stop_text.h"
#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Words = std::vector<std::string>;

// Everything at once, or byte by byte: the same text.
std::string through(const Words& stops, const std::string& text, size_t part, bool* stopped = nullptr) {
  StopText stop(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += part) out += stop.push(text.substr(at, part));
  out += stop.finish();
  if (stopped) *stopped = stop.stopped();
  return out;
}

TEST(StopText, EndsAtTheFirstStopAcrossParts) {
  for (const size_t part : {1u, 2u, 3u, 100u}) {
    bool stopped = false;
    EXPECT_EQ(through({"END", "###"}, "abc#E##EN###END", part, &stopped), "abc#E##EN");
    EXPECT_TRUE(stopped);
    EXPECT_EQ(through({"END"}, "abcEN", part, &stopped), "abcEN");  // held back, then given out
    EXPECT_FALSE(stopped);
    EXPECT_EQ(through({"aab"}, "aaab", part), "a");
    EXPECT_EQ(through({""}, "abc", part), "abc");
  }
}

TEST(StopText, HoldsBackOnlyWhatMayStop) {
  StopText stop({"END"});
  EXPECT_EQ(stop.push("abE"), "ab");
  EXPECT_EQ(stop.push("x"), "Ex");
  EXPECT_EQ(stop.push("EN"), "");
  EXPECT_EQ(stop.push("D and more"), "");
  EXPECT_EQ(stop.push("more"), "");
  EXPECT_EQ(stop.finish(), "");
}

Sampling sampled(const test::TempFolder& folder, Words words) {
  words.insert(words.end(), {"--model", "m", "--prompt", "p"});
  return sampling_of(parse_options(generate_table(), words),
                     model_sampling(folder.path(), [](const std::string& line) { FAIL() << line; }));
}

TEST(SamplingOptions, TheModelsThenTheOptions) {
  const test::TempFolder none, drawn, unset;
  drawn.write("generation_config.json",
              R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1})");
  unset.write("generation_config.json", R"({"eos_token_id": 2, "temperature": null})");
  EXPECT_TRUE(sampled(none, {}).greedy);
  EXPECT_TRUE(sampled(unset, {}).greedy);
  const Sampling s = sampled(drawn, {});
  EXPECT_FALSE(s.greedy);
  EXPECT_FLOAT_EQ(s.temperature, 0.6f);
  EXPECT_FLOAT_EQ(s.top_p, 0.9f);
  EXPECT_FLOAT_EQ(s.repetition_penalty, 1.1f);
  EXPECT_EQ(s.top_k, 50);  // what transformers draws from where nobody says otherwise
  EXPECT_EQ(sampled(drawn, {"--top-k", "0"}).top_k, 0);
  EXPECT_TRUE(sampled(drawn, {"--greedy"}).greedy);
  EXPECT_TRUE(sampled(drawn, {"--temperature", "0"}).greedy);
  EXPECT_FALSE(sampled(none, {"--temperature", "0.5"}).greedy);
  EXPECT_FALSE(sampled(none, {"--top-k", "5"}).greedy);
  EXPECT_FALSE(sampled(none, {"--min-p", "0.1"}).greedy);
  EXPECT_TRUE(sampled(none, {"--repetition-penalty", "1.2"}).greedy);
  EXPECT_THROW(sampled(none, {"--greedy", "--top-p", "0.5"}), Error);
  EXPECT_THROW(sampled(none, {"--no-greedy", "--temperature", "0"}), Error);
}

TEST(SamplingOptions, GenerationConfigIsReadStrictly) {
  for (const char* wrong :
       {R"({"temperature": -1})", R"({"top_p": 0})", R"({"top_p": 1.5})", R"({"top_k": "5"})",
        R"({"do_sample": 1})", R"({"repetition_penalty": 0})", R"([])", R"({"min_p": 2})"}) {
    const test::TempFolder folder;
    folder.write("generation_config.json", wrong);
    EXPECT_THROW(model_sampling(folder.path(), [](const std::string&) {}), Error) << wrong;
  }
  const test::TempFolder folder;
  folder.write("generation_config.json",
               R"({"no_repeat_ngram_size": 3, "num_beams": 1, "bad_words_ids": [], "typical_p": 1.0})");
  Words warned;
  model_sampling(folder.path(), [&](const std::string& line) { warned.push_back(line); });
  ASSERT_EQ(warned.size(), 1u);
  EXPECT_NE(warned[0].find("no_repeat_ngram_size is 3"), std::string::npos) << warned[0];
}

class Generate : public testing::Test {
 protected:
  Generate() { write_model(folder_); }
  Ended run(Words words, const std::string& in = "/dev/null") const {
    words.insert(words.end(), {"--model", folder_.path(), "--bits", "16", "--max-new-tokens", "12"});
    return run_program(generate_table, generate, words, in);
  }
  test::TempFolder folder_;
};

TEST_F(Generate, OnePromptIsWhatTheModelSays) {
  const auto raw = run({"--prompt", "ab", "--raw", "--json"}).json();
  EXPECT_EQ(raw["prompt_tokens"], 2);
  EXPECT_LE(raw["tokens"], 12);
  const auto chat = run({"--prompt", "ab", "--json"}).json();
  EXPECT_EQ(chat["prompt_tokens"], 22);  // <s>user: ab</s><s>assistant: and a blank, a byte a token
  EXPECT_EQ(run({"--prompt", "ab", "--raw"}).out, raw["text"].get<std::string>() + "\n");
  const std::string in = folder_.write("in", "ab\n");
  EXPECT_EQ(run({"--prompt", "-", "--raw", "--json"}, in).json()["text"], raw["text"]);
}

TEST_F(Generate, TheSameSeedIsTheSameText) {
  const auto drawn = [&](const char* seed) {
    return run({"--prompt", "ab", "--raw", "--json", "--temperature", "2", "--seed", seed}).json()["text"];
  };
  EXPECT_EQ(drawn("1"), drawn("1"));
  EXPECT_NE(drawn("1"), drawn("2"));
}

TEST_F(Generate, RowsDoNotDependOnEachOther) {
  const std::string out = folder_ / "out.jsonl";
  std::string rows;
  Words alone;
  for (int i = 0; i < 20; ++i) {  // more than run at once
    const std::string prompt(static_cast<size_t>(1 + 3 * i % 7), static_cast<char>('a' + i)),
        row = "{\"prompt\": \"" + prompt + "\"}\n";
    rows += row;
    EXPECT_EQ(run({"--dataset", folder_.write("row.jsonl", row), "--output", out}).code, 0);
    std::string line;
    std::getline(std::ifstream(out) >> std::ws, line);
    alone.push_back(nlohmann::json::parse(line)["completion"]);
  }
  const std::string data = folder_.write("rows.jsonl", rows);
  const Ended e = run({"--dataset", data, "--output", out});
  EXPECT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(e.out, "");
  std::ifstream in(out);
  size_t n = 0;
  for (std::string line; std::getline(in, line); ++n)
    EXPECT_EQ(nlohmann::json::parse(line)["completion"], alone.at(n)) << "row " << n;
  EXPECT_EQ(n, alone.size());
}

TEST_F(Generate, StopsAndIsSilentAboutTheStop) {
  const std::string all = run({"--prompt", "ab", "--raw", "--json"}).json()["text"];
  // Some byte of the answer's second half that is plain and new there.
  size_t at = std::string::npos;
  for (size_t i = 1; i < all.size() && at == std::string::npos; ++i)
    if (all[i] > ' ' && all[i] < 127 && all.find(all[i]) == i) at = i;
  ASSERT_NE(at, std::string::npos) << all;
  const auto cut = run({"--prompt", "ab", "--raw", "--json", "--stop", std::string(1, all[at])}).json();
  EXPECT_EQ(cut["text"], all.substr(0, at));
  EXPECT_EQ(cut["finish"], "stop");
}

TEST_F(Generate, AdaptersSideBySide) {
  const std::string adapter = QLORA_GOLDEN "/models/llama/adapter_final";
  const auto both =
      run({"--prompt", "ab", "--raw", "--json", "--adapter", "none", "--adapter", adapter}).json();
  ASSERT_EQ(both["answers"].size(), 2u);
  EXPECT_EQ(both["answers"][0]["text"], run({"--prompt", "ab", "--raw", "--json"}).json()["text"]);
  EXPECT_EQ(both["answers"][1]["adapter"], adapter);
  EXPECT_NE(both["answers"][0]["text"], both["answers"][1]["text"]);
}

TEST_F(Generate, ChatKeepsItsHistoryUntilReset) {
  const std::string in = folder_.write("in", "ab\n/reset\nab\n\ncd\n");
  const Ended e = run({"--chat", "--max-new-tokens", "3"}, in);
  EXPECT_EQ(e.code, 0) << e.err;
  const std::string first = run({"--prompt", "ab", "--max-new-tokens", "3"}).out;
  ASSERT_EQ(e.out.rfind(first + first, 0), 0u) << e.out;
  EXPECT_NE(e.out.substr(2 * first.size()), run({"--prompt", "cd", "--max-new-tokens", "3"}).out);
}

TEST_F(Generate, RefusesInOneLine) {
  const auto refused = [&](const Words& words, int code, const char* part) {
    const Ended e = run(words);
    EXPECT_EQ(e.code, code) << part;
    EXPECT_NE(e.err.find(part), std::string::npos) << e.err;
    EXPECT_EQ(e.out, "");
  };
  refused({}, 2, "give one of --prompt TEXT, --chat and --dataset");
  refused({"--prompt", "a", "--chat"}, 2, "too much to answer");
  refused({"--chat", "--raw"}, 2, "--chat needs the chat template");
  refused({"--chat", "--json"}, 2, "--json is one result");
  refused({"--prompt", "a", "--output", "f"}, 2, "--output is for the completions");
  refused({"--prompt", "a", "--raw", "--system", "b"}, 2, "--system needs the chat template");
  refused({"--prompt", "", "--raw"}, 2, "has no tokens to continue");
  refused({"--prompt", std::string(128, 'a'), "--raw"}, 2, "context of 128");
  std::filesystem::remove(folder_ / "chat_template.jinja");
  refused({"--prompt", "a"}, 3, "has no chat template; continue the prompt as it is with --raw");
}

}  // namespace
}  // namespace qlora::tools
