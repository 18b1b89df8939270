// How products are cut into tasks.
#include "kernels/gemm/gemm_blocks.h"

#include <gtest/gtest.h>

namespace qlora {
namespace {

// An adapter's own products are a panel wide or less: their rows are what there is to share.
TEST(GemmTasks, NarrowProductsAreDividedByRows) {
  for (const GemmTile tile : {kBf16GemmTile, GemmTile{8, 48, kMostPanels}})
    for (const int64_t cols : {8, 16, 32}) {
      EXPECT_EQ(GemmTasks(tile, 512, cols, 1).count(), 1) << cols;
      for (const int threads : {2, 4}) {
        const GemmTasks tasks(tile, 512, cols, threads);
        EXPECT_EQ(tasks.count(), threads) << cols;
        EXPECT_EQ(tasks.rows, 512 / threads) << cols;
      }
    }
  // A panel and a half: halves of the rows are equal, the panels are not.
  EXPECT_EQ(GemmTasks(kBf16GemmTile, 512, 48, 2).rows, 256);
}

// Each task that divides rows decodes the weights anew.
TEST(GemmTasks, WideProductsAreDividedByColumns) {
  for (const int64_t cols : {192, 576, 1536}) {
    const GemmTasks tasks(kBf16GemmTile, 512, cols, 2);
    EXPECT_EQ(tasks.rows, 512) << cols;
    EXPECT_EQ(tasks.count() % 2, 0) << cols;
    EXPECT_EQ(tasks.cols * tasks.col_groups, cols);
  }
}

TEST(GemmTasks, CoverTheOutputAndFitTheirWorkspace) {
  for (const int64_t rows : {1, 31, 512, 513, 2100})
    for (const int64_t cols : {1, 33, 576, 49152})
      for (const int threads : {1, 3, 16}) {
        const GemmTasks tasks(kBf16GemmTile, rows, cols, threads);
        EXPECT_GE(tasks.rows * tasks.row_blocks, rows);
        EXPECT_LT(tasks.rows * (tasks.row_blocks - 1), rows);
        EXPECT_GE(tasks.cols * tasks.col_groups, cols);
        EXPECT_LT(tasks.cols * (tasks.col_groups - 1), cols);
        EXPECT_LE(tasks.rows, kMostRows);
        EXPECT_EQ(tasks.rows % kBf16Tile, 0);
        EXPECT_LE(tasks.cols, kBf16GemmTile.most_panels * kBf16Tile);
      }
}

}  // namespace
}  // namespace qlora
