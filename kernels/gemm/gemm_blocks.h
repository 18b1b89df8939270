#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/gemm/gemm.h"

namespace qlora {

// How a product is cut. Only kBlockK enters the arithmetic: an output element is, block after block of
// kBlockK terms of the sum (each GemmTerm begins a block), one chain of multiply-adds in order from 0, and
// these are added up in order. Every other size is free: the same bits whatever the rows, the columns and the
// threads. (bf16 products on AMX tiles and by vdpbf16ps are other arithmetics, in which nothing here counts:
// gemm_bf16.inl.)
inline constexpr int64_t kBlockK = 192;
inline constexpr int64_t kStrideA = kBlockK + 16;  // of a packed block of x: off a power of two
inline constexpr int64_t kMostRows = 512;          // of a task
inline constexpr int64_t kMostPanels = 8;          // of a task

// Of bf16 products: a microkernel's rows and columns, the steps of 32 terms that a decoded panel holds, and the parts
// of GemmTerms that these may come from.
inline constexpr int64_t kBf16Tile = 32, kBf16Steps = 20, kBf16Segments = 10;
// Of a row of them in a copy: each part's length is made odd in lines.
inline constexpr int64_t kBf16PackedBytes = (kBf16Steps + kBf16Segments) * 64;

// The microkernel's tile, an ISA's own, and how many of its columns a task may have at most.
struct GemmTile {
  int64_t rows, cols, most_panels;
};
inline constexpr GemmTile kBf16GemmTile{kBf16Tile, kBf16Tile, 12};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A worker's memory, in floats; each part a multiple of 16.
struct GemmWorkspace {
  int64_t a, panel, c;  // packed block of x or a, decoded panel of w or b, fp32 sums
  int64_t stride_c;
  int64_t floats() const { return a + panel + c; }

  // For outputs of up to `rows` rows, `cols` columns: grows with both.
  GemmWorkspace(GemmTile tile, bool of_bf16, int64_t rows, int64_t cols) {
    const int64_t most_rows = kMostRows / tile.rows * tile.rows;
    const int64_t task_rows =
        std::min(most_rows, ceil_div(std::max<int64_t>(rows, 1), tile.rows) * tile.rows);
    const int64_t panels = std::clamp<int64_t>(ceil_div(cols, tile.cols), 1, tile.most_panels);
    stride_c = panels * tile.cols + 16;
    // Then both hold bf16, two to a float: rows of whole steps, each part's length off a power of two, and
    // two panels.
    a = of_bf16 ? task_rows * kBf16PackedBytes / 4
                : ceil_div(std::max(task_rows * kStrideA, kBlockK * (task_rows + 32)), 16) * 16;
    panel = of_bf16 ? 2 * kBf16Steps * 16 * kBf16Tile : ceil_div(kBlockK * tile.cols, 16) * 16;
    c = ceil_div(task_rows * stride_c, 16) * 16;
  }
};

// The cut of an [M, N] output into tasks.
struct GemmTasks {
  int64_t rows, cols;  // of a task, the last ones may be smaller
  int64_t row_blocks, col_groups;
  int64_t count() const { return row_blocks * col_groups; }

  GemmTasks(GemmTile tile, int64_t M, int64_t N, int threads) {
    const int64_t fewest = ceil_div(M, kMostRows / tile.rows * tile.rows), panels = ceil_div(N, tile.cols);
    // The rounds that the busiest worker makes times the cost of a task, in rows of a panel: packing a row of
    // x costs a third of one, decoding a panel about 128. So columns are divided where there are enough of
    // them, and rows, for which panels are decoded again, where an adapter's rank is all there is.
    double least = 0;
    for (int64_t blocks = fewest; blocks <= fewest * threads; ++blocks) {
      const int64_t height = ceil_div(ceil_div(M, blocks), tile.rows) * tile.rows;
      for (int64_t per = std::min(panels, tile.most_panels); per >= 1; --per) {
        const int64_t tasks = ceil_div(M, height) * ceil_div(panels, per);
        const double width =
            static_cast<double>(std::min(per * tile.cols, N)) / static_cast<double>(tile.cols);
        const double cost = static_cast<double>(ceil_div(tasks, threads)) *
                            (width * static_cast<double>(height + 128) + static_cast<double>(height) / 3);
        if (least != 0 && cost >= least) continue;
        least = cost;
        rows = height;
        cols = per * tile.cols;
      }
      if (height == tile.rows) break;
    }
    row_blocks = ceil_div(M, rows);
    col_groups = ceil_div(N, cols);
  }
};

// One gemm_nt or gemm_nn, as its tasks see it.
struct GemmCall {
  std::span<const GemmTerm> terms;
  GemmEpilogue epilogue;
  Mat y;
  bool transposed_w;  // gemm_nt
  // gemm_few_nt on a CUDA device: however many rows of up to kFewRows there are, a row has its bits.
  bool few = false;
  DecodeAhead* ahead = nullptr;  // on a CUDA device
};

// Category::internal on operands that do not fit each other.
void check_gemm(const char* name, const GemmCall& call);
struct GemmCost {
  double flops, bytes_read;
};
GemmCost gemm_cost(const GemmCall& call);

struct GemmTnCall {
  ConstMat a, b;
  float scale;
  Mat out;
  bool swapped = false;  // out is [columns of b, columns of a]
};

// A task's part of the output.
struct GemmPart {
  int64_t row, rows, col, cols;
};

}  // namespace qlora
