#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "memory/error.h"
#include "tests/support/temp_folder.h"
#include "tools/common/options.h"
#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Words = std::vector<std::string>;

Words train(Words more) {
  Words words = {"--model", "m", "--dataset", "d.jsonl", "--output-dir", "out"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::string value_of(const Options& options, const std::string& name) {
  for (const Setting& setting : options.settings_in_force())
    if (setting.name == name) return setting.values.front();
  return "(unset)";
}

std::string error_of(const Words& words, const Table& table = train_table()) {
  try {
    parse_options(table, words);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "(no error)";
}

struct Accepted {
  Words words;
  std::string name, value;
};

class AcceptedTest : public testing::TestWithParam<Accepted> {};

TEST_P(AcceptedTest, Means) {
  const Accepted& p = GetParam();
  EXPECT_EQ(value_of(parse_options(train_table(), train(p.words)), p.name), p.value);
}

INSTANTIATE_TEST_SUITE_P(
    CommandLine, AcceptedTest,
    testing::Values(
        Accepted{{}, "lora-r", "16"}, Accepted{{"--lora_r", "8"}, "lora-r", "8"},
        Accepted{{"--lora-r=8"}, "lora-r", "8"}, Accepted{{"--lora-rank=8"}, "lora-r", "8"},
        Accepted{{"--r", "4"}, "lora-r", "4"},
        Accepted{{"--lora_r", "8", "--lora-r", "9"}, "lora-r", "9"},  // the last one counts
        Accepted{{"--lora-r=8", "--lora-rank", "8"}, "lora-r", "8"},
        Accepted{{"--shuffle", "--no-shuffle"}, "shuffle", "false"},
        Accepted{{"--eval-strategy=steps", "--eval-steps=5"}, "eval-steps", "5"},
        Accepted{{"--eval_strategy", "epoch", "--eval-fraction", "0.1"}, "eval-steps", "(unset)"},
        Accepted{
            {"--eval_strategy", "epoch", "--val-set-size=0"}, "eval-steps", "(unset)"},  // told to be off
        Accepted{{"--save_strategy", "epoch"}, "save-steps", "1000000000"},
        Accepted{{"--lora_modules", "all"}, "target-modules", "all-linear"}, Accepted{{}, "bits", "(unset)"},
        Accepted{{"--bits", "KEEP"}, "bits", "keep"}, Accepted{{"--load_in_4bit"}, "bits", "4"},
        Accepted{{"--load-in-8bit", "True"}, "bits", "8"},
        Accepted{{"--load-in-4bit", "false", "--bits", "16"}, "bits", "16"},
        Accepted{{}, "double-quant", "true"}, Accepted{{"--no-double-quant"}, "double-quant", "false"},
        Accepted{{"--no_double_quant"}, "double-quant", "false"},
        Accepted{{"--double-quant", "False"}, "double-quant", "false"},
        Accepted{{"--double-quant=off"}, "double-quant", "false"},
        Accepted{{"--no-bnb-4bit-use-double-quant"}, "double-quant", "false"},
        Accepted{{"--packing", "--lora-r", "2"}, "packing", "true"},
        Accepted{{"--sample_packing", "true"}, "packing", "true"},
        Accepted{{"--bf16"}, "compute-dtype", "bf16"}, Accepted{{"--bf16", "false"}, "compute-dtype", "fp32"},
        Accepted{{"--no-bf16"}, "compute-dtype", "fp32"},
        Accepted{{"--fp16", "False"}, "compute-dtype", "bf16"},
        Accepted{{"--compute-dtype", "torch.bfloat16"}, "compute-dtype", "bf16"},
        Accepted{{"--optim", "adamw_torch"}, "optim", "adamw"},
        Accepted{{"--optimizer=adamw_bnb_8bit"}, "optim", "adamw_8bit"},
        Accepted{{"--paged-adamw"}, "optim", "paged_adamw_32bit"},
        Accepted{{"--no-paged-adamw"}, "optim", "adamw"},
        Accepted{{"--gradient-checkpointing"}, "gradient-checkpointing", "all"},
        Accepted{{"--gradient-checkpointing", "true"}, "gradient-checkpointing", "all"},
        Accepted{{"--gradient-checkpointing", "none"}, "gradient-checkpointing", "none"},
        Accepted{{"--gradient-checkpointing", "--packing"}, "gradient-checkpointing", "all"},
        Accepted{{"--no-gradient-checkpointing"}, "gradient-checkpointing", "none"},
        Accepted{{"--train-on-inputs"}, "loss-on", "all"},
        Accepted{{"--no-train-on-inputs"}, "loss-on", "assistant"},
        Accepted{{"--lora-target-linear"}, "target-modules", "all-linear"},
        Accepted{{"--target-modules", "q_proj, v_proj"}, "target-modules", "q_proj, v_proj"},
        Accepted{{"--target-modules", "layers\\.\\d{1,2}\\.q_proj"},
                 "target-modules",
                 "layers\\.\\d{1,2}\\.q_proj"},
        Accepted{{"--max-steps", "-1"}, "max-steps", "(unset)"},
        Accepted{{"--max-steps=20"}, "max-steps", "20"},
        Accepted{{"--cutoff_len", "512"}, "max-seq-length", "512"},
        Accepted{{"--sequence-len=512"}, "max-seq-length", "512"},
        Accepted{{"--max-length", "512"}, "max-seq-length", "512"},
        Accepted{{"--val-set-size", "0.1"}, "eval-fraction", "0.1"},
        Accepted{{"--micro-batch-size", "3"}, "per-device-train-batch-size", "3"},
        Accepted{{"--num-epochs", "2.5"}, "num-train-epochs", "2.5"},
        Accepted{{"--lr_scheduler", "Cosine"}, "lr-scheduler-type", "cosine"},
        Accepted{{"--report_to", "html"}, "report-to", "html"},
        Accepted{{"--memory", "8GiB"}, "memory", "8GiB"}, Accepted{{"--memory", "AUTO"}, "memory", "auto"},
        Accepted{{"--base_model", "m"}, "model", "m"},
        Accepted{{"--chat-template=--x"}, "chat-template", "--x"},
        Accepted{{"--no-push-to-hub"}, "lora-r", "16"}, Accepted{{"--deepspeed", "none"}, "lora-r", "16"},
        Accepted{{"--device", "cpu"}, "device", "cpu"}));

struct Refused {
  Words words;
  std::string says;  // must occur in the line
};

class RefusedTest : public testing::TestWithParam<Refused> {};

TEST_P(RefusedTest, SaysWhy) {
  const std::string line = error_of(train(GetParam().words));
  EXPECT_NE(line.find(GetParam().says), std::string::npos) << line;
}

INSTANTIATE_TEST_SUITE_P(
    CommandLine, RefusedTest,
    testing::Values(
        Refused{{"--seed", "1", "--data-seed", "2"}, "--data-seed: contradicts --seed"},
        Refused{{"--bits", "4", "--load-in-8bit"}, "--load-in-8bit: contradicts --bits"},
        Refused{{"--eval-strategy", "steps"}, "add eval_steps"},
        Refused{{"--eval-strategy", "epoch"}, "add eval_dataset or eval_fraction"},
        Refused{{"--eval-steps=5", "--eval-strategy=epoch", "--eval-fraction=0.1"},
                "--eval-strategy: contradicts --eval-steps"},
        Refused{{"--save-strategy=no"}, "give save_steps"},
        Refused{{"--lora-rr", "8"}, "unknown option --lora-rr, nearest is --lora-r"},
        Refused{{"--lerning_rate", "1"}, "nearest is --learning-rate"},
        Refused{{"--no-pakcing"}, "nearest is --no-packing"},
        Refused{{"--no-lora-r"}, "unknown option --no-lora-r"}, Refused{{"-r", "8"}, "unknown option -r"},
        Refused{{"stray"}, "unexpected argument 'stray'"},
        Refused{{"--", "--packing"}, "unexpected argument '--packing'"},
        Refused{{"--packing", "stray"}, "unexpected argument 'stray'"},
        Refused{{"--no-packing=true"}, "takes no value"},
        Refused{{"--packing=maybe"}, "neither true nor false"},
        Refused{{"--lora-r"}, "--lora-r needs a value"},
        Refused{{"--chat-template", "--packing"}, "needs a value and --packing follows"},
        Refused{{"--chat-template", "--lora_r=8"}, "needs a value and --lora_r=8 follows"},
        Refused{{"--lora-r", "8.0"}, "not a whole number"}, Refused{{"--lora-r", " 8"}, "not a whole number"},
        Refused{{"--lora-r", "0x8"}, "not a whole number"}, Refused{{"--lora-r", "8k"}, "not a whole number"},
        Refused{{"--lora-r", ""}, "not a whole number"}, Refused{{"--lora-r="}, "not a whole number"},
        Refused{{"--seed", "9223372036854775808"}, "not a whole number"},
        Refused{{"--seed", "-1"}, "out of range"},
        Refused{{"--lora-r", "0"}, "out of range; give a number from 1 to 65536"},
        Refused{{"--max-seq-length", "1"}, "give a number from 2 to 16777216"},
        Refused{{"--max-steps", "0"}, "out of range"},
        Refused{{"--max-steps", "2147483648"}, "give a number from 1 to 2147483647"},
        Refused{{"--max-steps", "9223372036854775807"}, "out of range"},
        Refused{{"--warmup-steps", "4294967296"}, "give a number from 0 to 2147483647"},
        Refused{{"--lora-alpha", "1e300"}, "out of range; give a number above 0 to 1000000000"},
        Refused{{"--adam-epsilon", "1e-300"}, "out of range; give a number at least 1e-30"},
        Refused{{"--lora-dropout", "1"}, "from 0 to below 1"}, Refused{{"--lora-alpha", "0"}, "above 0"},
        Refused{{"--learning-rate", "nan"}, "not a number"},
        Refused{{"--learning-rate", "inf"}, "not a number"},
        Refused{{"--learning-rate", "1e999"}, "not a number"},
        Refused{{"--learning-rate", "1,5"}, "not a number"}, Refused{{"--memory", "8G"}, "not a size"},
        Refused{{"--memory", "-1"}, "not a size"}, Refused{{"--bits", "3"}, "one of 4|8|16|keep"},
        Refused{{"--optim", "adamv"}, "nearest is adamw"}, Refused{{"--optim", "lion_8bit"}, "is not built"},
        Refused{{"--report-to", "tensorboard,wandb"}, "wandb is not built"},
        Refused{{"--report-to", "none,html"}, "none beside others"}, Refused{{"--fp16"}, "give bf16"},
        Refused{{"--load-in-4bit", "false"}, "add bits"},
        Refused{{"--load-in-4bit=maybe"}, "neither true nor false"},
        Refused{{"--device", "cuda"}, "the CUDA backend is not built into this program"},
        Refused{{"--device", "cuda:1"}, "not built into this program"},
        Refused{{"--device", "gpu"}, "no device"},
        Refused{{"--host-memory", "1GiB"}, "CUDA, which is not built"},
        Refused{{"--neftune-noise-alpha", "5"}, "not built"}, Refused{{"--use_dora"}, "use-rslora"},
        Refused{{"--deepspeed", "ds.json"}, "paged_adamw_32bit"}, Refused{{"--push-to-hub"}, "hf upload"},
        Refused{{"--wandb-project", "x"}, "report-to"}, Refused{{"--fsdp", "full_shard"}, "one device"},
        Refused{{"--batch-size", "8"}, "per-device-train-batch-size"},
        Refused{{"--lr-scheduler-kwargs", "num_cycles"}, "not key=value"},
        Refused{{"--target-modules", "a,,b"}, "empty entry"},
        Refused{{"--chat-template", "\xff"}, "not UTF-8"}, Refused{{"--help=1"}, "takes no value"}));

TEST(Options, MissingOnesAreNamedTogether) {
  EXPECT_NE(error_of({}).find("missing --model MODEL --dataset DATA --output-dir OUT"), std::string::npos)
      << error_of({});
  EXPECT_NE(error_of({"--model="}).find("missing --model"), std::string::npos);
}

TEST(Options, CudaIsTakenWhereItIsBuilt) {
  const Options options =
      parse_options(train_table(), train({"--device", "cuda:1", "--host-memory", "1GiB"}), {.cuda = true});
  EXPECT_EQ(options.get<std::string>("device"), "cuda:1");
  EXPECT_EQ(options.get<uint64_t>("host-memory"), uint64_t{1} << 30);
}

TEST(Options, ADashAloneIsAValue) {
  const Options options = parse_options(generate_table(), {"--model", "m", "--prompt", "-"});
  EXPECT_EQ(options.get<std::string>("prompt"), "-");
}

TEST(Options, TypedAccess) {
  Options options = parse_options(
      train_table(),
      train({"--lora-r", "8", "--memory", "680MB", "--lr-scheduler-kwargs", "num_cycles=2, min_lr=1e-6",
             "--target-modules", "q_proj,v_proj", "--block-size", "128"}));
  EXPECT_EQ(options.get<int64_t>("lora-r"), 8);
  EXPECT_EQ(options.get<int64_t>("block-size"), 128);
  EXPECT_EQ(options.get<uint64_t>("memory"), 680000000u);
  EXPECT_EQ(options.get<double>("learning-rate"), 2e-4);
  EXPECT_TRUE(options.get<bool>("shuffle"));
  EXPECT_EQ(options.get<Words>("target-modules"), (Words{"q_proj", "v_proj"}));
  EXPECT_EQ(options.pairs("lr-scheduler-kwargs"),
            (std::vector<std::pair<std::string, std::string>>{{"num_cycles", "2"}, {"min_lr", "1e-6"}}));
  EXPECT_FALSE(options.find<double>("lora-alpha"));
  EXPECT_TRUE(options.given("lora-r"));
  EXPECT_FALSE(options.given("learning-rate"));
  EXPECT_EQ(options.origin("memory"), "--memory");
  options.settle("lora-alpha", "16");
  EXPECT_EQ(options.get<double>("lora-alpha"), 16);
  EXPECT_FALSE(options.given("lora-alpha"));
  EXPECT_THROW(options.get<int64_t>("learning-rate"), Error);
  EXPECT_THROW(options.get<std::string>("no-such"), Error);
  EXPECT_THROW(options.get<std::string>("eval-dataset"), Error);
}

TEST(Options, RequestsWinOverWhatIsMissing) {
  EXPECT_EQ(parse_options(train_table(), {"--help"}).request(), Options::Request::help);
  EXPECT_EQ(parse_options(train_table(), {"-h"}).request(), Options::Request::help);
  EXPECT_EQ(parse_options(train_table(), {"--version"}).request(), Options::Request::version);
  EXPECT_EQ(parse_options(train_table(), {"--model", "x", "--help-man"}).request(), Options::Request::man);
}

TEST(Options, RepeatedAndOperand) {
  const Options options =
      parse_options(generate_table(), {"--model", "m", "--adapter", "a", "--adapter=none", "--stop", "\n",
                                       "--stop", "", "--prompt", "-- hi"});
  EXPECT_EQ(options.get<Words>("adapter"), (Words{"a", "none"}));
  EXPECT_EQ(options.get<Words>("stop"), (Words{"\n", ""}));
  EXPECT_EQ(options.get<std::string>("prompt"), "-- hi");
  const Options inspect = parse_options(inspect_table(), {"--tensors", "dir", "--no-special"});
  EXPECT_EQ(inspect.get<std::string>("path"), "dir");
  EXPECT_FALSE(inspect.get<bool>("special"));
  EXPECT_EQ(parse_options(inspect_table(), {"--", "--odd"}).get<std::string>("path"), "--odd");
  EXPECT_NE(error_of({"a", "b"}, inspect_table()).find("unexpected argument 'b' after 'a'"),
            std::string::npos);
  EXPECT_NE(error_of({}, inspect_table()).find("missing PATH"), std::string::npos);
}

// Any text survives config.yaml: quotes, colons, control characters, what looks like another type, other
// scripts.
TEST(Options, SettingsComeBackFromYamlAndJson) {
  const Words odd = {"null",
                     "true",
                     "1e3",
                     "- a",
                     "a: b # c",
                     "\"q\" 'p' \\n",
                     "\n\t\r\x01\x7f",
                     "{x}",
                     "[y",
                     "&a *b !c %d @e `f",
                     "  two  ",
                     "",
                     "\xc3\xa9\xe2\x80\xa8\xf0\x9f\xa6\x99",
                     "~",
                     "? x",
                     "|",
                     ">",
                     "---",
                     "..."};
  for (const std::string& text : odd) {
    const Options first =
        parse_options(generate_table(), {"--model=m", "--system=" + text, "--stop=" + text, "--stop=x",
                                         "--temperature=0.1", "--top-p=1e-5", "--repetition-penalty=1e300",
                                         "--seed=9007199254740993", "--adapter=a"});
    for (const bool json : {false, true}) {
      const test::TempFolder scratch;
      const std::string path =
          scratch.write(json ? "c.json" : "c.yaml", json ? first.to_json().dump() : first.to_yaml());
      const Options second = parse_options(generate_table(), {"--config", path});
      EXPECT_EQ(second.get<std::string>("system"), text) << first.to_yaml();
      EXPECT_EQ(second.get<Words>("stop"), (Words{text, "x"}));
      EXPECT_EQ(second.get<double>("temperature"), 0.1);
      EXPECT_EQ(second.get<double>("top-p"), 1e-5);
      EXPECT_EQ(second.get<double>("repetition-penalty"), 1e300);
      EXPECT_EQ(second.get<int64_t>("seed"), 9007199254740993);
      EXPECT_EQ(first.to_yaml(), second.to_yaml());
      EXPECT_EQ(first.to_json(), second.to_json());
    }
  }
}

TEST(Options, SettingsAreTypedAndWithoutThisCallsOwn) {
  const Options options =
      parse_options(train_table(), train({"--bits=4", "--dry-run", "--json", "--overwrite-output-dir"}));
  const nlohmann::ordered_json json = options.to_json();
  EXPECT_EQ(json.at("bits"), 4);
  EXPECT_EQ(json.at("learning_rate"), 2e-4);
  EXPECT_EQ(json.at("shuffle"), true);
  EXPECT_EQ(json.at("optim"), "adamw");
  for (const char* name : {"dry_run", "json", "overwrite_output_dir", "config", "lora_alpha"})
    EXPECT_FALSE(json.contains(name));
  // YAML 1.1 readers take 1e-08 for text: a number there has a point.
  EXPECT_NE(options.to_yaml().find("\nadam_epsilon: 1.0e-08\n"), std::string::npos) << options.to_yaml();
}

// OUT/config.yaml alone runs the run again: the same settings, from nothing but the file.
TEST(Options, ConfigYamlRunsTheRunAgain) {
  const Options first = parse_options(
      train_table(), train({"--load-in-4bit", "--no-shuffle", "--lora-alpha", "24", "--lr-scheduler-kwargs",
                            "num_cycles=2,power=3", "--target-modules", "q_proj,v_proj", "--learning-rate",
                            "3.3e-4", "--eval-fraction=.1", "--memory=6GiB", "--max-steps=7",
                            "--resume-from-checkpoint=last", "--no-train-on-inputs"}));
  const test::TempFolder scratch;
  const Options second =
      parse_options(train_table(), {"--config", scratch.write("config.yaml", first.to_yaml())});
  EXPECT_EQ(first.to_yaml(), second.to_yaml());
  EXPECT_EQ(first.to_json(), second.to_json());
  EXPECT_EQ(second.pairs("lr-scheduler-kwargs"), first.pairs("lr-scheduler-kwargs"));
  EXPECT_FALSE(second.find<std::string>("resume-from-checkpoint"));
}

// Any words end in options or in one Error of the user's kind.
TEST(Options, AnyWordsParseOrAreRefused) {
  for (const Table* table : {&train_table(), &quantize_table(), &eval_table(), &generate_table(),
                             &inspect_table(), &plan_table()}) {
    Words pool = {"--",
                  "-",
                  "-x",
                  "--=",
                  "--no-",
                  "--no-no-packing",
                  "",
                  "=",
                  "true",
                  "false",
                  "none",
                  "1",
                  "-1",
                  "1e3",
                  "a=b",
                  "a,b",
                  "auto",
                  "cuda:7",
                  "8GiB",
                  "--wandb",
                  "\xff",
                  std::string(5000, 'a'),
                  "--" + std::string(5000, 'a')};
    for (const Option& option : table->options)
      pool.insert(pool.end(), {"--" + option.name, "--no-" + option.name + "=x", "--" + option.name + "="});
    uint64_t state = 1;
    for (int round = 0; round < 500; ++round) {
      Words words;
      for (int i = 0; i < 6; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        words.push_back(pool[(state >> 33) % pool.size()]);
      }
      try {
        parse_options(*table, words);
      } catch (const Error& error) {
        EXPECT_TRUE(error.exit_code() == 2 || error.exit_code() == 3) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace qlora::tools
