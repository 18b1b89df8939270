#include <gtest/gtest.h>

#include <set>

#include "memory/error.h"
#include "tools/common/nearest.h"
#include "tools/common/option_help.h"
#include "tools/common/option_match.h"
#include "tools/common/option_value.h"
#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

class TableTest : public testing::TestWithParam<const Table*> {};

INSTANTIATE_TEST_SUITE_P(Tools, TableTest,
                         testing::Values(&train_table(), &quantize_table(), &eval_table(), &generate_table(),
                                         &inspect_table(), &plan_table()),
                         [](const auto& info) { return with_underscores(info.param->program).substr(6); });

TEST_P(TableTest, NoNameTwice) {
  std::set<std::string> names;
  for (const Option& option : GetParam()->options) {
    EXPECT_EQ(option.name, with_dashes(option.name));
    EXPECT_TRUE(names.insert(option.name).second) << option.name;
    for (const Alias& alias : option.aliases)
      EXPECT_TRUE(names.insert(with_dashes(alias.name)).second) << alias.name;
  }
}

TEST_P(TableTest, EveryNameIsFoundAndEveryFallbackHolds) {
  for (const Option& option : GetParam()->options) {
    EXPECT_EQ(match_name(*GetParam(), option.name).option, &option);
    for (const Alias& alias : option.aliases) {
      const Match match = match_name(*GetParam(), with_dashes(alias.name));
      EXPECT_EQ(match.option, &option) << alias.name;
      for (const ValueRule& rule : alias.values) {
        if (rule.then == ValueRule::use) {
          EXPECT_EQ(canonical_value(option, rule.text, "x"), rule.text) << alias.name;
        }
        for (const std::string& other : rule.with)
          EXPECT_NE(match_name(*GetParam(), other).option, nullptr) << other;
        EXPECT_EQ(rule.then == ValueRule::needs && rule.with.empty(), false) << alias.name;
      }
    }
    for (const ValueRule& rule : option.rules) {
      if (rule.then == ValueRule::use) {
        EXPECT_EQ(canonical_value(option, rule.text, "x"), rule.text) << option.name;
      } else if (rule.then == ValueRule::refuse) {
        EXPECT_FALSE(rule.text.empty());
      }
    }
    if (!option.fallback.empty()) {
      EXPECT_EQ(canonical_value(option, option.fallback, "x"), option.fallback);
    } else {
      EXPECT_TRUE(option.required || !option.shown.empty()) << option.name << ": help has no default to show";
    }
    if (!option.bare.empty()) {
      EXPECT_EQ(canonical_value(option, option.bare, "x"), option.bare);
    }
    EXPECT_FALSE(option.help.empty()) << option.name;
  }
}

TEST_P(TableTest, RefusalsHideNoOptionAndNameARemedyThatExists) {
  for (const Refusal& refusal : GetParam()->refusals) {
    EXPECT_FALSE(refusal.remedy.empty());
    if (refusal.name.back() == '*') continue;
    const Match match = match_name(*GetParam(), with_dashes(refusal.name));
    EXPECT_TRUE(match.option || match.refusal) << refusal.name;
  }
}

TEST_P(TableTest, HelpShowsEveryOptionWithinTheWidth) {
  const std::string help = help_text(*GetParam(), 80), man = man_page(*GetParam(), "1"),
                    bash = bash_completion(*GetParam());
  for (const Option& option : GetParam()->options) {
    if (option.name == GetParam()->operand) continue;
    const std::string shown = (option.kind == Kind::toggle ? "--[no-]" : "--") + option.name;
    EXPECT_NE(help.find("\n  " + shown + (option.kind == Kind::toggle ? "" : " ")), std::string::npos)
        << option.name;
    EXPECT_NE(man.find("\n.TP\n"), std::string::npos);
    EXPECT_NE(bash.find(" --" + option.name), std::string::npos) << option.name;
  }
  EXPECT_NE(help.find(GetParam()->example), std::string::npos);
  EXPECT_EQ(man.rfind(".TH ", 0), 0u);
  size_t start = 0;
  for (size_t end = help.find('\n'); end != std::string::npos;
       start = end + 1, end = help.find('\n', start)) {
    const std::string line = help.substr(start, end - start);
    if (line.rfind("example:", 0) == 0 || line.rfind("  --", 0) == 0) continue;  // one piece, however long
    EXPECT_LE(line.size(), 80u) << line;
  }
}

// The example is a whole command: its words parse.
TEST_P(TableTest, ExampleParses) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false;
  for (char c : GetParam()->example + " ") {
    if (c == '"')
      quoted = !quoted;
    else if (c == ' ' && !quoted)
      words.push_back(std::exchange(word, ""));
    else
      word += c;
  }
  ASSERT_EQ(words.front(), GetParam()->program);
  words.erase(words.begin());
  EXPECT_NO_THROW(parse_options(*GetParam(), words));
}

TEST(Values, Bytes) {
  const auto same = [](const char* text, uint64_t bytes) { EXPECT_EQ(parse_bytes(text), bytes) << text; };
  same("0", 0);
  same("680MB", 680000000);
  same("500MiB", 524288000);
  same("8GiB", uint64_t{8} << 30);
  same("8 GiB", uint64_t{8} << 30);
  same("1.5gib", 1610612736);
  same("1kB", 1000);
  same("2TiB", uint64_t{2} << 40);
  same("12B", 12);
  same("9007199254740993", 9007199254740993);
  for (const char* bad :
       {"", "GiB", "8G", "8Gi", "-1", "-1GiB", "1e3", "1.5", "8GiB ", " 8GiB", "1..5GiB",
        "99999999999999999999", "9223372036854775808", "1e30GiB", "9999999999GiB", "8GiBs", "0x10"})
    EXPECT_FALSE(parse_bytes(bad)) << bad;
}

TEST(Values, Device) {
  EXPECT_EQ(parse_device("cuda:3")->index, 3);
  EXPECT_EQ(parse_device("cuda")->which, DeviceName::Which::cuda);
  for (const char* bad : {"", "cuda:", "cuda:-1", "cuda:1x", "cuda:256", "cpu:0", "gpu"})
    EXPECT_FALSE(parse_device(bad)) << bad;
}

TEST(Values, Utf8) {
  for (const char* good : {"", "a", "é", "€", "\xf0\x9f\xa6\x99", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(valid_utf8(good)) << good;
  for (const char* bad : {"\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                          "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff", "a\xe2\x82"})
    EXPECT_FALSE(valid_utf8(bad)) << bad;
}

TEST(Nearest, CountsEdits) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("pakcing", "packing"), 1);
  EXPECT_EQ(edit_distance("ca", "abc"), 3);  // the restricted distance: no edit between swapped letters
  EXPECT_EQ(edit_distance("LoRA", "lora"), 0);
  EXPECT_EQ(nearest("lora-target", {"lora-r", "lora-target-modules"}), "lora-target-modules");
  EXPECT_EQ(nearest("x", {}), "");
}

}  // namespace
}  // namespace qlora::tools
