#include <gtest/gtest.h>

#include "memory/error.h"
#include "tests/support/temp_folder.h"
#include "tools/common/config_file.h"
#include "tools/common/options.h"
#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Words = std::vector<std::string>;
const std::string kHead = "model: m\ndataset: d\noutput_dir: o\n";

Options with_config(const std::string& text, Words more = {}, const std::string& name = "c.yaml") {
  const test::TempFolder scratch;
  more.insert(more.end(), {"--config", scratch.write(name, text)});
  return parse_options(train_table(), more);
}

std::string error_of(const std::string& text, int code, const std::string& name = "c.yaml") {
  try {
    with_config(text, {}, name);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), code) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "(no error)";
}

TEST(Config, CommandLineWinsWhateverTheOrder) {
  const test::TempFolder scratch;
  const std::string path =
      scratch.write("c.yaml", kHead + "lora_r: 8\nlora-alpha: 32.5\npacking: yes\nmax_steps: 7\n");
  for (const bool first : {true, false}) {
    Words words = {"--lora-r", "4", "--max-steps", "-1"};
    words.insert(first ? words.begin() : words.end(), {"--config", path});
    const Options options = parse_options(train_table(), words);
    EXPECT_EQ(options.get<int64_t>("lora-r"), 4);
    EXPECT_EQ(options.get<double>("lora-alpha"), 32.5);
    EXPECT_TRUE(options.get<bool>("packing"));
    EXPECT_FALSE(options.find<int64_t>("max-steps"));
    EXPECT_EQ(options.origin("lora-alpha"), path + ":5: lora-alpha");
  }
}

TEST(Config, EachEpochIsAValueLikeAnyOther) {
  const test::TempFolder scratch;
  const std::string path = scratch.write("c.yaml", kHead + "eval_steps: 50\neval_fraction: 0.1\n");
  EXPECT_EQ(parse_options(train_table(), {"--config", path}).get<int64_t>("eval-steps"), 50);
  EXPECT_FALSE(parse_options(train_table(), {"--config", path, "--eval-strategy", "epoch"})
                   .find<int64_t>("eval-steps"));
}

// The Axolotl project's own kind of file, with the keys that its examples leave empty.
TEST(Config, ReadsAPeersFile) {
  const Options options = with_config(R"(
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
strict: false
datasets: data.jsonl
val_set_size: 0.05
output_dir: ./outputs/out
adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
  - q_proj
  - v_proj
lora_target_linear:
lora_fan_in_fan_out:
wandb_project:
wandb_entity: ""
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_8bit
lr_scheduler: cosine
lr_scheduler_kwargs: {num_cycles: 0.5}
learning_rate: 0.0002
train_on_inputs: false
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
flash_attention: true
warmup_steps: 10
weight_decay: 0.0
fsdp: []
deepspeed:
special_tokens: {}
)");
  EXPECT_EQ(options.get<int64_t>("bits"), 4);
  EXPECT_EQ(options.get<std::string>("model"), "NousResearch/Llama-3.2-1B");
  EXPECT_EQ(options.get<std::string>("target-modules"), "q_proj,v_proj");
  EXPECT_EQ(options.get<std::string>("optim"), "paged_adamw_8bit");
  EXPECT_EQ(options.get<std::string>("gradient-checkpointing"), "all");
  EXPECT_EQ(options.pairs("lr-scheduler-kwargs").at(0).second, "0.5");
  EXPECT_EQ(options.get<double>("eval-fraction"), 0.05);
  EXPECT_EQ(options.get<std::string>("loss-on"), "assistant");
  EXPECT_FALSE(options.given("init-adapter"));
}

struct Bad {
  std::string text;
  int code;
  std::string says;
  std::string name = "c.yaml";
};

class BadConfigTest : public testing::TestWithParam<Bad> {};

TEST_P(BadConfigTest, SaysWhere) {
  const Bad& p = GetParam();
  const std::string line = error_of(p.text, p.code, p.name);
  EXPECT_NE(line.find(p.says), std::string::npos) << line;
}

std::string levels(int n, const char* open, const char* close = "") {
  std::string text;
  for (int i = 0; i < n; ++i) text += open;
  for (int i = 0; i < n; ++i) text += close;
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Files, BadConfigTest,
    testing::Values(
        Bad{kHead + "lora_rr: 8\n", 2, "c.yaml:4: lora_rr: unknown key, nearest is lora_r"},
        Bad{kHead + "help: true\n", 2, "unknown key"}, Bad{kHead + "config: x\n", 2, "unknown key"},
        Bad{kHead + "lora_r: 8\nlora_r: 8\n", 3, ":5: the key 'lora_r' occurs twice"},
        Bad{kHead + "lora_r: 8\nlora_rank: 9\n", 2, "lora_rank: contradicts "},
        Bad{kHead + "load_in_4bit: true\nload_in_8bit: true\n", 2, "contradicts"},
        Bad{kHead + "load_in_4bit: false\n", 2, "add bits"},
        Bad{kHead + "eval_strategy: epoch\n", 2, ":4: eval_strategy: epoch wants rows to evaluate on"},
        Bad{kHead + "eval_strategy: epoch\neval_steps: 50\nval_set_size: 0.1\n", 2, "contradicts "},
        Bad{kHead + "lora_r: [8]\n", 2, "a list is not read here"},
        Bad{kHead + "lora_r: {a: 8}\n", 2, "a mapping is not read here"},
        Bad{kHead + "datasets:\n  - path: x\n    type: alpaca\n", 2, "entries with a structure"},
        Bad{kHead + "target_modules: [\"a,b\"]\n", 2, "holds a comma"},
        Bad{kHead + "no_packing: 3\n", 2, "takes true only"},
        Bad{kHead + "wandb_project: x\n", 2, ":4: wandb_project is not built"},
        Bad{kHead + "special_tokens: {pad: x}\n", 2, "tokenizer files"},
        Bad{kHead + "device: cuda\n", 2, "CUDA backend"},
        Bad{kHead + "learning_rate: fast\n", 2, ":4: learning_rate: 'fast' is not a number"},
        Bad{"a: &x [1]\nb: *x\n", 3, ":2: YAML aliases are not read"},
        Bad{"lora_r: !!python/object 8\n", 3, "the tag"}, Bad{"lora_r: !x 8\n", 3, "the tag"},
        Bad{"- a\n- b\n", 3, "not a mapping"}, Bad{"text", 3, "not a mapping"},
        Bad{"a: 1\n---\nb: 2\n", 3, "more than one YAML document"}, Bad{"a: [1\nb: 2", 3, "malformed YAML"},
        Bad{"a: \"x", 3, "malformed YAML"}, Bad{"? [a]\n: b\n", 3, "a key is not plain text"},
        Bad{"a: " + levels(100000, "["), 3, "nested deeper"},
        Bad{"a: " + levels(16, "{b: ", "}"), 3, "nested deeper"},
        Bad{levels(100000, "- "), 3, "nested deeper"},
        Bad{levels(100000, "{\"a\":"), 3, "nested deeper", "c.json"},
        Bad{"{\"a\": " + levels(100000, "["), 3, "nested deeper", "c.json"},
        Bad{"{\"r\": 1, \"r\": 2}", 3, "the key 'r' occurs twice", "c.json"},
        Bad{"{\"r\":\n 1,}", 3, "c.json:2: malformed JSON", "c.json"},
        Bad{"[1]", 3, "not a mapping", "c.json"}, Bad{"{\"a\": \"\xff\"}", 3, "malformed JSON", "c.json"},
        Bad{"", 3, "malformed JSON", "c.json"}, Bad{std::string("a\0b", 3), 3, "zero byte"},
        Bad{std::string((1 << 20) + 1, '#'), 3, "more than the 1048576"}));

TEST(Config, FormatsAreToldApart) {
  const std::string json =
      R"({"model": "m", "dataset": ["a.jsonl:2", "b.jsonl"], "output_dir": "o", "lora_r": 8, "packing": true,
                               "weight_decay": 1e-2, "eval_dataset": null, "chat_template": "é\n"})";
  for (const char* name : {"c.json", "c.yaml", "c"}) {
    const Options options = with_config(json, {}, name);
    EXPECT_EQ(options.get<int64_t>("lora-r"), 8);
    EXPECT_EQ(options.get<double>("weight-decay"), 0.01);
    EXPECT_EQ(options.get<std::string>("dataset"), "a.jsonl:2,b.jsonl");
    EXPECT_EQ(options.get<std::string>("chat-template"), "é\n");
    EXPECT_FALSE(options.given("eval-dataset"));
  }
}

TEST(Config, EmptyFilesAndAbsentOnes) {
  for (const char* text : {"", "\n# nothing\n", "---\n"})
    EXPECT_NE(error_of(text, 2).find("missing --model"), std::string::npos);
  EXPECT_NE(error_of(kHead + "...\n", 2).find("(no error)"), std::string::npos);
  try {
    parse_options(train_table(), {"--config", "/no/such.yaml"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 3);
    EXPECT_NE(std::string(error.what()).find("/no/such.yaml: "), std::string::npos);
  }
}

// Every prefix and every flipped byte ends in a tree or in one Error, never otherwise.
TEST(Config, BrokenTextNeverCrashes) {
  const std::string yaml =
      kHead + "a: [1, {b: 'c'}]\nd: |\n  x\n  y\ne: >-\n z\n? f\n: \"\\u00e9\"\ng: &h !!str i\n";
  const std::string json = R"({"a": [1, -2.5e3, true, null, "\u00e9"], "b": {"c": {}}})";
  for (const auto& [text, name] : {std::pair(yaml, "c.yaml"), std::pair(json, "c.json")}) {
    for (size_t i = 0; i <= text.size(); ++i) {
      for (const char* put : {"", "[", "}", ":", "\"", "\xff", "*a", "!", "\t", "\n-"}) {
        try {
          parse_config(text.substr(0, i) + put, name);
          parse_config(text.substr(0, i) + put + (i < text.size() ? text.substr(i + 1) : ""), name);
        } catch (const Error& error) {
          EXPECT_EQ(error.exit_code(), 3) << error.what();
        }
      }
    }
  }
}

}  // namespace
}  // namespace qlora::tools
