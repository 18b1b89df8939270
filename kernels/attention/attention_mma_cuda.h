#pragma once
#include <climits>
#include <type_traits>

#include "kernels/attention/attention_args.h"
#include "kernels/attention/attention_documents_cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/rows.h"

// What attention's bf16 kernels share: rows of a head in shared memory, products of them on tensor cores,
// scores in base 2. A head of any size up to 256 is computed as one of 64, 96, 128 or 256, its missing
// elements zero.
//
// A warp has 16 rows of its block's; a matrix of 16 x 8 n is float [n][4] in each lane, as mma_bf16 has it:
// element i of tile n is row lane() / 4 + i / 2 * 8, column n * 8 + lane() % 4 * 2 + i % 2.
namespace qlora::cuda {

inline constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
inline constexpr float kNothing = -__builtin_inff();  // the score of a key that is not seen

QLORA_DEVICE int tile_row(int i) { return lane() / 4 + i / 2 * 8; }
QLORA_DEVICE int tile_col(int n, int i) { return n * 8 + lane() % 4 * 2 + i % 2; }

// Where 8 elements of a row lie: permuted so that the 8 rows that a matrix load reads are in different banks
// without bytes between the rows.
template <int kDim>
QLORA_DEVICE int eight_at(int row, int eight) {
  const int mixed = kDim % 64 == 0 ? row % 8 : row / 2 % 4;
  return row * kDim + (eight ^ mixed) * 8;
}

struct HeadRows {
  const bf16* first;
  int64_t stride;
  int count, dim;  // what is there; the rest is zero
  bool aligned;    // rows begin on 16 bytes: they are copied asynchronously
};

template <int kThreads, int kRows, int kDim>
QLORA_DEVICE void load_rows(Shared<bf16> tile, const HeadRows& rows) {
  constexpr int kEights = kDim / 8;
#pragma unroll
  for (int i = thread(); i < kRows * kEights; i += kThreads) {
    const int row = i / kEights, eight = i % kEights, at = eight_at<kDim>(row, eight);
    const bool inside = row < rows.count && eight * 8 < rows.dim;
    const bf16* from = inside ? rows.first + row * rows.stride + eight * 8 : rows.first;
    if (rows.aligned) {
      copy_async16(tile, at, from, inside ? 16 : 0);
    } else {
      for (int j = 0; j < 8; ++j) tile[at + j] = inside ? from[j] : from_float<bf16>(0.f);
    }
  }
}

// sums [16, kCols] += rows [row, row + 16) of a times the first kCols rows of b, transposed.
template <int kDim, int kCols>
QLORA_DEVICE void dot_rows(float (&sums)[kCols / 8][4], Shared<bf16> a, int row, Shared<bf16> b) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t fa[4];
    load_matrices(fa, a, eight_at<kDim>(row + lane() % 16, 2 * k + lane() / 16));
#pragma unroll
    for (int n = 0; n < kCols / 16; ++n) {
      uint32_t fb[4];
      load_matrices(fb, b, eight_at<kDim>(n * 16 + lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
      mma_bf16(sums[2 * n], fa, fb[0], fb[1]);
      mma_bf16(sums[2 * n + 1], fa, fb[2], fb[3]);
    }
  }
}

// sums [16, kDim] += weights [16, kRows], rounded to bf16, times the first kRows rows of b.
template <int kDim, int kRows>
QLORA_DEVICE void add_rows(float (&sums)[kDim / 8][4], const float (&weights)[kRows / 8][4], Shared<bf16> b) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    const float(&left)[4] = weights[2 * k], (&right)[4] = weights[2 * k + 1];
    const uint32_t fa[4] = {pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                            pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t fb[4];
      load_matrices_transposed(fb, b, eight_at<kDim>(k * 16 + lane() % 16, 2 * n + lane() / 16));
      mma_bf16(sums[2 * n], fa, fb[0], fb[1]);
      mma_bf16(sums[2 * n + 1], fa, fb[2], fb[3]);
    }
  }
}

// Rows of sums, times factors[i / 2], to rows of one head.
template <int kDim>
QLORA_DEVICE void store_rows(const Rows<bf16>& to, int64_t first, int count, int col, int dim,
                             const float (&sums)[kDim / 8][4], const float (&factors)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (tile_row(2 * half) >= count) continue;
    bf16* row = to[first + tile_row(2 * half)] + col;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      if (n * 8 >= dim) continue;
      row[tile_col(n, 0)] = from_float<bf16>(sums[n][2 * half] * factors[half]);
      row[tile_col(n, 1)] = from_float<bf16>(sums[n][2 * half + 1] * factors[half]);
    }
  }
}

// What a warp's 16 rows and a tile of others have to do with each other: keys [first_key, last_key], queries
// that stand at [first, last].
struct Sight {
  bool any, all;
  QLORA_DEVICE Sight(int first_key, int last_key, int first, int last, int window)
      : any(first_key <= last && last_key > first - window),
        all(last_key <= first && first_key > last - window) {}
};
QLORA_DEVICE bool sees(int position, int key, int window) {
  return key <= position && key > position - window;
}

struct AttentionOperands {
  AttentionDocuments docs;
  Rows<const bf16> q, k, v, d_o;
  int group, dim;
  int window;  // INT_MAX: none
  float scale, softcap;
  float inner, factor;  // score in base 2 = tanh(q.k * inner) * factor with a cap, else q.k * factor
  bool aligned;

  AttentionOperands(const attention::Args& a, const AttentionDocuments& documents)
      : docs(documents),
        q(rows_of<bf16>(a.q)),
        k(rows_of<bf16>(a.k)),
        v(rows_of<bf16>(a.v)),
        d_o(rows_of<bf16>(a.d_o)),
        group(static_cast<int>(a.group())),
        dim(static_cast<int>(a.dim())),
        window(a.shape.window > 0 ? a.shape.window : INT_MAX),
        scale(a.shape.scale),
        softcap(a.shape.softcap),
        inner(softcap > 0 ? scale / softcap : 0),
        factor((softcap > 0 ? softcap : scale) * kLog2E),
        aligned(true) {
    for (const ConstMat& m : {a.q, a.k, a.v, a.d_o})
      aligned = aligned && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % 8 == 0;
  }
  // Rows of one head from `row` of a document's `count` that begin at `begin`.
  QLORA_DEVICE HeadRows rows(const Rows<const bf16>& of, int begin, int count, int row, int head) const {
    return {of[begin + row] + head * dim, of.stride, count - row, dim, aligned};
  }
};

// f(the head's size as a constant).
template <class F>
void with_head(int64_t dim, F&& f) {
  if (dim <= 64)
    f(std::integral_constant<int, 64>());
  else if (dim <= 96)
    f(std::integral_constant<int, 96>());
  else if (dim <= 128)
    f(std::integral_constant<int, 128>());
  else
    f(std::integral_constant<int, 256>());
}

}  // namespace qlora::cuda
