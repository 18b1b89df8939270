#include "quant/quantize4.h"

#include <algorithm>
#include <bit>

#include "quant/blockwise8.h"
#include "quant/codebook.h"

namespace qlora {
namespace {

constexpr int kTile = 32;  // divides every block size

// Counting thresholds takes no branch, so both rules vectorize over the elements of a tile.
struct Nf4Rule {
  static uint32_t code(float x) {
    uint32_t q = 0;
    for (float t : kNf4Thresholds) q += x > t ? 1u : 0u;
    return q;
  }
};

struct Fp4Rule {
  static uint32_t code(float x) {
    const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
    uint32_t rank = 0;
    for (float t : kFp4Thresholds) rank += magnitude > t ? 1u : 0u;
    // Magnitudes ascend in the order of codes 0 1 6 7 4 5 2 3: the upper bits count backwards, modulo 4.
    return ((0u - (rank & 6u)) & 6u) | (rank & 1u) | (x < 0 ? 8u : 0u);
  }
};

template <class Rule>
void code_tile(const float* v, float inverse, uint8_t* packed) {
  uint32_t q[kTile];
  for (int i = 0; i < kTile; ++i) q[i] = Rule::code(v[i] * inverse);
  for (int i = 0; i < kTile / 2; ++i) packed[i] = static_cast<uint8_t>(q[2 * i] << 4 | q[2 * i + 1]);
}

// x = v * inverse may lie an ulp beyond 1, which changes no code: no clamp.
template <class Rule>
void code_block(const float* v, int64_t n, float inverse, uint8_t* packed) {
  int64_t i = 0;
  for (; i + kTile <= n; i += kTile) code_tile<Rule>(v + i, inverse, packed + i / 2);
  if (i == n) return;
  float padded[kTile] = {};
  uint8_t bytes[kTile / 2];
  std::copy(v + i, v + n, padded);
  code_tile<Rule>(padded, inverse, bytes);
  std::copy_n(bytes, (n - i + 1) / 2, packed + i / 2);
}

void add_to(float* sums, const float* values, int n) {
  for (int i = 0; i < n; ++i) sums[i] += values[i];
}

// The sum of a contiguous fp32 tensor in the order of torch's CPU kernel on one thread: 32 columns (4 vectors
// of 8 lanes) are summed in groups of 16 rows, groups of groups, and so on for four levels; then the levels,
// vectors that fill no row, columns, and last the elements that fill no vector, with the lanes after them.
float torch_sum(const float* values, int64_t n) {
  constexpr int kLanes = 8, kColumns = 32, kLevels = 4;
  const int64_t vectors = n / kLanes, rows = n / kColumns;
  // Groups of 16 rows, larger ones where there are very many rows.
  const int log2_rows = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(rows, 1) - 1));
  const int power = std::max(4, log2_rows / kLevels);
  float level[kLevels][kColumns] = {};
  for (int64_t row = 1; row <= rows; ++row) {
    add_to(level[0], values + (row - 1) * kColumns, kColumns);
    for (int j = 1; j < kLevels && row % (int64_t{1} << (j * power)) == 0; ++j) {
      add_to(level[j], level[j - 1], kColumns);
      std::fill_n(level[j - 1], kColumns, 0.0f);
    }
  }
  float* sums = level[0];
  for (int j = 1; j < kLevels; ++j) add_to(sums, level[j], kColumns);
  for (int64_t v = rows * (kColumns / kLanes); v < vectors; ++v) add_to(sums, values + v * kLanes, kLanes);
  for (int c = kLanes; c < kColumns; c += kLanes) add_to(sums, sums + c, kLanes);
  float total = 0;
  for (int64_t i = vectors * kLanes; i < n; ++i) total += values[i];
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  return total;
}

}  // namespace

int64_t quantize4(Format format, const float* values, int64_t n, int block_size, uint8_t* packed,
                  float* absmax) {
  check(format == Format::nf4 || format == Format::fp4, "quantize4 of a format that is not 4-bit");
  check(block_size > 0 && block_size % kTile == 0, "block size ", block_size);
  for (int64_t first = 0; first < n; first += block_size) {
    const int64_t count = std::min<int64_t>(block_size, n - first);
    const float* v = values + first;
    const float a = block_absmax(v, count);
    if (!is_finite(a)) return first + first_non_finite(v, count);
    absmax[first / block_size] = a;
    const float inverse = a == 0 ? 0.0f : 1.0f / a;
    if (format == Format::nf4)
      code_block<Nf4Rule>(v, count, inverse, packed + first / 2);
    else
      code_block<Fp4Rule>(v, count, inverse, packed + first / 2);
  }
  return -1;
}

float absmax_offset(const float* absmax, int64_t blocks) {
  if (blocks == 0) return 0;
  const float mean = torch_sum(absmax, blocks) / static_cast<float>(blocks);
  if (is_finite(mean)) return mean;
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += static_cast<double>(absmax[b]);
  return static_cast<float>(sum / static_cast<double>(blocks));
}

void quantize_absmax(const float* absmax, int64_t blocks, float offset, uint8_t* codes, float* nested) {
  float centered[kBlock8];
  for (int64_t first = 0; first < blocks; first += kBlock8) {
    const int64_t count = std::min<int64_t>(kBlock8, blocks - first);
    for (int64_t i = 0; i < count; ++i) centered[i] = absmax[first + i] - offset;
    const int64_t bad = quantize8(dynamic_map(true).data(), centered, count, codes + first, nested++);
    check(bad < 0, "scale ", first + bad, " is not finite");
  }
}

}  // namespace qlora
