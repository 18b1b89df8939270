#include "tools/common/inspect.h"
#include "tests/tools/text_model.h"
#include "tools/common/inspect_text.h"
#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Words = std::vector<std::string>;
Ended run(const Words& words) { return run_program(inspect_table, inspect, words); }

TEST(Inspect, TokenizesAndBack) {
  const test::TempFolder folder;
  write_tokenizer(folder, false);  // nothing else: no model, no template
  const std::string path = folder.path();
  const Ended there = run({path, "--tokenize", "a<s> é"});
  EXPECT_EQ(there.out, "{\"ids\":[100,1,35,198,172],\"tokens\":[\"a\",\"<s>\",\"Ġ\",\"Ã\",\"©\"]}\n")
      << there.err;
  EXPECT_EQ(run({path, "--detokenize", "100,1,35,198,172,2"}).json()["text"], "a<s> é</s>");
  EXPECT_EQ(run({path, "--tokenize", ""}).json()["ids"].size(), 0u);
  EXPECT_EQ(run({path + "/tokenizer.json", "--tokenize", "a"}).json()["ids"].size(), 1u);
  const Ended wrong = run({path, "--detokenize", "5,259"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_EQ(wrong.err, "qlora-inspect: error: --detokenize 259: no token id; the vocabulary has 0 to 258\n");
}

TEST(Inspect, TokenizeFileKeepsOrderAndOnlyLineFeedsEndRows) {
  const test::TempFolder folder;
  write_tokenizer(folder, false);
  // U+2028, U+0085 and a carriage return inside a row end nothing.
  const std::string rows = folder.write(
      "rows.jsonl", "{\"text\": \"b\xe2\x80\xa8\xc2\x85\"}\n{\"text\": \"a\\r\\n\"}\r\n{\"text\": \"\"}");
  const Ended e = run({folder.path(), "--tokenize-file", rows});
  EXPECT_EQ(e.out, "{\"ids\":[101,229,131,171,197,136]}\n{\"ids\":[100,16,13]}\n{\"ids\":[]}\n") << e.err;
  const std::string bad = folder.write("bad.jsonl", "{\"text\": \"b\"}\n{\"tex\": \"a\"}\n");
  const Ended failed = run({folder.path(), "--tokenize-file", bad});
  EXPECT_EQ(failed.code, 3);
  EXPECT_NE(failed.err.find("bad.jsonl: line 2: has no string 'text'"), std::string::npos) << failed.err;
}

TEST(Inspect, RendersChats) {
  const test::TempFolder folder;
  write_tokenizer(folder);
  const std::string path = folder.path();
  const std::string chat = folder.write("chat.json", R"([{"role": "user", "content": "hi"}])");
  EXPECT_EQ(run({path, "--chat", chat}).json()["text"], "<s>user: hi</s>");
  EXPECT_EQ(run({path, "--chat", chat, "--add-generation-prompt"}).json()["text"],
            "<s>user: hi</s><s>assistant: ");
  const std::string bad = folder.write("bad.json", R"({"messages": [{"role": "bad", "content": "hi"}]})");
  const Ended raised = run({path, "--chat", bad});
  EXPECT_EQ(raised.code, 3);
  EXPECT_NE(raised.err.find("no such role here"), std::string::npos) << raised.err;
  const std::string clock = folder.write("clock.jinja", "{{ strftime_now('%A %d %B %Y %H:%M:%S %j') }}");
  EXPECT_EQ(
      run({path, "--chat", chat, "--chat-template", clock, "--now", "2025-03-09 14:05:06"}).json()["text"],
      "Sunday 09 March 2025 14:05:06 068");
}

TEST(Inspect, ClockIsReadStrictly) {
  EXPECT_EQ(parse_clock("2024-02-29T01:02:03", "--now").tm_yday, 59);
  EXPECT_EQ(parse_clock("2025-03-09", "--now").tm_hour, 0);
  for (const char* wrong : {"2025-02-30 00:00:00", "2025-13-01", "noon", "2025-03-09 14:05:06 UTC", ""})
    EXPECT_THROW(parse_clock(wrong, "--now"), Error) << wrong;
}

TEST(Inspect, ShowsTheLossMask) {
  const test::TempFolder folder;
  write_tokenizer(folder);
  const std::string path = folder.path();
  const std::string rows = folder.write(
      "rows.jsonl",
      "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n");
  const auto shown = run({path, "--render", rows, "--row", "1", "--json"}).json();
  EXPECT_EQ(shown["text"], "1+1=2</s>");
  EXPECT_EQ(shown["masked"], "1+1=\u27e62</s>\u27e7");
  EXPECT_EQ(shown["tokens_with_loss"], 2);
  EXPECT_EQ(shown["loss"], nlohmann::ordered_json({0, 0, 0, 0, 1, 1}));
  const std::string all = run({path, "--render", rows, "--row", "1", "--loss-on", "all"}).out;
  EXPECT_NE(all.find("1\u27e6+1=2</s>\u27e7"), std::string::npos) << all;
  EXPECT_EQ(run({path, "--render", rows, "--row", "2"}).code, 2);
}

TEST(Inspect, SaysWhatPathsHold) {
  const test::TempFolder folder;
  write_model(folder);
  const auto model = run({folder.path(), "--json", "--tensors"}).json();
  EXPECT_EQ(model["kind"], "model folder");
  EXPECT_EQ(model["parameters"], 439168);
  EXPECT_EQ(model["stored_as"], "bfloat16");
  EXPECT_EQ(model["context"], 128);
  EXPECT_EQ(model["tokens"], 259);
  int64_t elements = 0;  // the stored tensors are all of the parameters
  for (const auto& t : model["tensors"]) {
    int64_t n = 1;
    for (const auto& d : t["shape"]) n *= d.get<int64_t>();
    elements += n;
  }
  EXPECT_EQ(elements, 439168);
  const std::string golden = QLORA_GOLDEN "/models/llama/";
  EXPECT_EQ(run({golden + "nf4", "--json"}).json()["stored_as"], "nf4, blocks of 64, double-quantized");
  const auto adapter = run({golden + "adapter", "--json"}).json();
  EXPECT_EQ(adapter["kind"], "adapter");
  EXPECT_EQ(adapter["r"], 4);
  EXPECT_EQ(adapter["parameters"], 22272);
  const auto data = run({golden + "train.jsonl", "--json"}).json();
  EXPECT_EQ(data["kind"], "data");
  EXPECT_EQ(data["format"], "tokens");
  const test::TempFolder empty;
  EXPECT_EQ(run({empty.path()}).code, 3);
}

TEST(Inspect, NamesWhatItCannotRead) {
  const test::TempFolder folder;
  const std::string cut = folder.write("cut.gguf", "GG"), loop = folder / "adapter_config.json";
  const Ended short_file = run({cut});
  EXPECT_EQ(short_file.code, 3);
  EXPECT_NE(short_file.err.find("cut short"), std::string::npos) << short_file.err;
  std::filesystem::create_symlink(loop, loop);
  const Ended refused = run({folder.path()});
  EXPECT_EQ(refused.code, 5);
  EXPECT_EQ(refused.err.rfind("qlora-inspect: error: " + loop + ": the system failed: ", 0), 0u)
      << refused.err;
}

TEST(Inspect, RefusesWhatSaysNothing) {
  const test::TempFolder folder;
  write_tokenizer(folder);
  const std::string path = folder.path();
  for (const Words& words : {Words{path, "--tokenize", "a", "--detokenize", "1"}, Words{path, "--row", "1"},
                             Words{path, "--tokenize", "a", "--tensors"}, Words{path, "--now", "2025-03-09"}})
    EXPECT_EQ(run(words).code, 2) << words.back();
}

}  // namespace
}  // namespace qlora::tools
