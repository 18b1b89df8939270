#include "kernels/cuda/algorithm_table.h"

#include <gtest/gtest.h>

#include "memory/error.h"

namespace qlora::cuda {
namespace {

constexpr Algorithm kOne = {1, 2, 3, 4, 5, 6, 7, 0xfedcba9876543210u};

TEST(AlgorithmTable, IsItsText) {
  AlgorithmTable table;
  EXPECT_TRUE(table.empty());
  table.set("NVIDIA H200", "130002", "nt 512x4096x4096 bf16", kOne);
  table.set("NVIDIA GeForce RTX 4090", "130002", "nn 1x8x8 fp32 +", {9});
  const AlgorithmTable again = AlgorithmTable::parse("# made on two cards\n\n" + table.text(), "t");
  EXPECT_EQ(again.text(), table.text());
  EXPECT_EQ(again.hash(), table.hash());
  ASSERT_NE(again.find("NVIDIA H200", "130002", "nt 512x4096x4096 bf16"), nullptr);
  EXPECT_EQ(*again.find("NVIDIA H200", "130002", "nt 512x4096x4096 bf16"), kOne);
  EXPECT_EQ(again.find("NVIDIA H200", "130003", "nt 512x4096x4096 bf16"), nullptr);
  EXPECT_EQ(again.find("NVIDIA H100", "130002", "nt 512x4096x4096 bf16"), nullptr);
  EXPECT_EQ(again.find("NVIDIA H200", "130002", "nt 512x4096x4096 fp32"), nullptr);
}

// By what it chooses: not by the order of lines, remarks or space.
TEST(AlgorithmTable, HashesWhatItChooses) {
  const std::string a = AlgorithmTable::line("G", "1", "nt 1x8x8 fp32", kOne),
                    b = AlgorithmTable::line("G", "1", "nt 2x8x8 fp32", kOne);
  const std::string hash = AlgorithmTable::parse(a + "\n" + b, "t").hash();
  EXPECT_EQ(AlgorithmTable::parse("  " + b + "  # why\r\n" + a + "\n", "t").hash(), hash);
  EXPECT_NE(AlgorithmTable::parse(a, "t").hash(), hash);
  EXPECT_NE(AlgorithmTable().hash(), hash);
}

TEST(AlgorithmTable, RefusesWhatIsNone) {
  const std::string good = AlgorithmTable::line("G", "1", "nt 1x8x8 fp32", kOne);
  const auto refused = [](const std::string& text) {
    try {
      AlgorithmTable::parse(text, "tables/t");
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::input);
      return std::string(e.what()).substr(0, 10);
    }
    return std::string();
  };
  EXPECT_EQ(refused(good), "");
  EXPECT_EQ(refused(good + "0"), "tables/t:1");
  EXPECT_EQ(refused(good + " 0000000000000000"), "tables/t:1");
  EXPECT_EQ(refused(good.substr(0, good.size() - 1)), "tables/t:1");
  EXPECT_EQ(refused("\n" + good.substr(0, good.size() - 1) + "g"), "tables/t:2");
  EXPECT_EQ(refused("# fine\n\n| " + good), "tables/t:3");
  EXPECT_EQ(refused("G | | p |" + good), "tables/t:1");
  EXPECT_EQ(refused(good + "\n" + good), "tables/t:2");
  EXPECT_THROW(AlgorithmTable::load("/nonexistent/table"), Error);
}

}  // namespace
}  // namespace qlora::cuda
