// The products of bf16 operands on AMX tiles (Intel SDM, TDPBF16PS): of a step's 32 terms, the even and the
// odd ones are two chains of multiply-adds from 0, whose sum is added to what stands in the tile; subnormals
// count as 0. Steps begin anew at each GemmTerm, so that an output element hangs on the order of its terms
// alone: blocks of K, rows, columns and threads are free.

#pragma GCC push_options
#pragma GCC target( \
    "amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::amx {

using avx512::load;
using avx512::mul;
using avx512::set1;
using avx512::Vec;

inline constexpr int64_t kTileSide = kAmxTile / 2;  // rows and fp32 columns of a tile register
inline constexpr int64_t kStepTerms = 32;           // bf16 in a tile register's row
inline constexpr int64_t kStepBytes = 2048;         // a step of kAmxTile columns
inline constexpr int64_t kPairBytes = kAmxSteps * kStepBytes;
inline constexpr int64_t kPanelCols = 2 * kAmxTile;  // decoded at a time: a block of 64 codes is set up once

// Two tiles, 16 columns each, make up a step of kAmxTile columns.
inline int64_t tile_offset(int64_t col) { return col / 32 * kPairBytes + col % 32 / 16 * 1024; }

inline __m512i bf16_pair(Vec low, Vec high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(avx512::bf16_bits(low))),
                            _mm512_cvtepi32_epi16(avx512::bf16_bits(high)), 1);
}

// 32 columns of two consecutive terms, as rows of two tiles.
inline void interleave(__m512i even, __m512i odd, char* to) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low, odd));
  _mm512_store_si512(to + 1024, _mm512_permutex2var_epi16(even, high, odd));
}

// The rows of the last step that no term fills.
inline void zero_pairs(int64_t count, int64_t cols, char* panel) {
  for (int64_t i = (count + 1) / 2 * 2; i % kStepTerms != 0; i += 2)
    for (int64_t j = 0; j < cols; j += 32) {
      char* to = panel + j / 32 * kPairBytes + i / kStepTerms * kStepBytes + i % kStepTerms / 2 * 64;
      _mm512_store_si512(to, _mm512_setzero_si512());
      _mm512_store_si512(to + 1024, _mm512_setzero_si512());
    }
}

#include "kernels/gemm/gemm_amx_decode.inl"

// While it lives, this thread's tile registers are all 16 rows of 64 bytes.
class TileRegisters {
 public:
  TileRegisters() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Rows of x that serve `steps` steps: bf16, whole steps.
struct TileRows {
  const char* data;
  int64_t stride;  // bytes
  int64_t steps;
};

// c[kRows * 16, kCols * 16] (+)= x w. `step` is the panel's first of the pair of tiles' columns.
template <int kRows, int kCols>
inline void tiles(const TileRows* x, int64_t parts, const char* step, float* c, int64_t stride_c,
                  bool first) {
  char* at = reinterpret_cast<char*>(c);
  const int64_t stride = stride_c * 4;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, at, stride);
    if constexpr (kCols > 1) _tile_loadd(1, at + 64, stride);
    if constexpr (kRows > 1) _tile_loadd(2, at + 16 * stride, stride);
    if constexpr (kRows > 1 && kCols > 1) _tile_loadd(3, at + 16 * stride + 64, stride);
  }
  for (int64_t p = 0; p < parts; ++p) {
    const char *a = x[p].data, *b = a + 16 * x[p].stride;
    for (int64_t s = 0; s < x[p].steps; ++s, a += 64, b += 64, step += kStepBytes) {
      _tile_loadd(6, step, 64);
      _tile_loadd(4, a, x[p].stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kCols > 1) {
        _tile_loadd(7, step + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRows > 1) {
        _tile_loadd(5, b, x[p].stride);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kCols > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, at, stride);
  if constexpr (kCols > 1) _tile_stored(1, at + 64, stride);
  if constexpr (kRows > 1) _tile_stored(2, at + 16 * stride, stride);
  if constexpr (kRows > 1 && kCols > 1) _tile_stored(3, at + 16 * stride + 64, stride);
  asm volatile("" ::: "memory");
}

inline void multiply(const TileRows* x, int64_t parts, const char* step, int64_t rows, int64_t cols, float* c,
                     int64_t stride_c, bool first) {
  if (rows > kTileSide)
    cols > kTileSide ? tiles<2, 2>(x, parts, step, c, stride_c, first)
                     : tiles<2, 1>(x, parts, step, c, stride_c, first);
  else
    cols > kTileSide ? tiles<1, 2>(x, parts, step, c, stride_c, first)
                     : tiles<1, 1>(x, parts, step, c, stride_c, first);
}

// Terms of a sum that a panel holds at a time: of one GemmTerm, `count` from k.
struct Segment {
  const GemmTerm* term;
  int64_t k, count;
  bool direct;  // x's own rows serve; else a packed copy does
  int64_t steps() const { return (count + kStepTerms - 1) / kStepTerms; }
  int64_t stride() const { return (steps() | 1) * 64; }  // of a packed copy: no power of two
};

struct Chunk {
  Segment segment[kAmxSegments];
  int64_t count = 0, steps = 0;
};

// Rows at a multiple of 4096 bytes fall on one set of the nearest cache.
inline bool served_directly(const ConstMat& x) { return x.stride * 2 % 4096 != 0; }

// The next terms of the sum from term `t`, element `k` on; whether any are left afterwards.
inline bool next_chunk(std::span<const GemmTerm> terms, size_t& t, int64_t& k, Chunk& chunk) {
  chunk = {};
  for (; t < terms.size(); ++t, k = 0)
    while (k < terms[t].x.cols) {
      const int64_t room = kAmxSteps - chunk.steps;
      if (room == 0 || chunk.count == kAmxSegments) return true;
      const bool direct = served_directly(terms[t].x);
      int64_t count = at_most(terms[t].x.cols - k, room * kStepTerms);
      if (direct && count > kStepTerms) count -= count % kStepTerms;  // the rest is packed
      Segment& s = chunk.segment[chunk.count++];
      s = {&terms[t], k, count, direct && count % kStepTerms == 0};
      chunk.steps += s.steps();
      k += count;
    }
  return false;
}

// Rows of x, filled up with zeros to whole steps and `padded` rows.
inline void pack_rows(const Segment& s, int64_t row, int64_t rows, int64_t padded, char* to) {
  const size_t bytes = static_cast<size_t>(s.steps() * 64), filled = static_cast<size_t>(s.count) * 2;
  for (int64_t r = 0; r < padded; ++r, to += s.stride()) {
    if (r < rows) std::memcpy(to, s.term->x.row<bf16>(row + r) + s.k, filled);
    std::memset(r < rows ? to + filled : to, 0, r < rows ? bytes - filled : bytes);
  }
}

// Where the rows of a chunk lie: block b has kAmxTile of them.
class ChunkRows {
 public:
  ChunkRows(const Chunk& chunk, const GemmPart& part, char* packed) : chunk_(chunk), part_(part) {
    const int64_t blocks = ceil_div(part.rows, kAmxTile), whole = part.rows / kAmxTile;
    for (int64_t i = 0; i < chunk.count; ++i) {
      const Segment& s = chunk.segment[i];
      // Of rows that serve themselves only the last, partial block is copied.
      first_[i] = s.direct ? whole : 0;
      packed_[i] = packed;
      const int64_t row = first_[i] * kAmxTile, padded = blocks * kAmxTile - row;
      pack_rows(s, part.row + row, part.rows - row, padded, packed);
      packed += padded * s.stride();
    }
  }
  void of(int64_t block, TileRows* x) const {
    for (int64_t i = 0; i < chunk_.count; ++i) {
      const Segment& s = chunk_.segment[i];
      if (block < first_[i])
        x[i] = {reinterpret_cast<const char*>(s.term->x.row<bf16>(part_.row + block * kAmxTile) + s.k),
                s.term->x.stride * 2, s.steps()};
      else
        x[i] = {packed_[i] + (block - first_[i]) * kAmxTile * s.stride(), s.stride(), s.steps()};
    }
  }

 private:
  const Chunk& chunk_;
  const GemmPart& part_;
  const char* packed_[kAmxSegments];
  int64_t first_[kAmxSegments];
};

inline void decode_chunk(const GemmCall& call, const Chunk& chunk, int64_t col, int64_t cols, char* panel) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Segment& s = chunk.segment[i];
    decode(call.transposed_w, s.term->w, col, cols, s.k, s.count, panel);
    panel += s.steps() * kStepBytes;
  }
}

// kAmxTile rows and columns at a time, finished as soon as their sums are.
inline void multiply_chunk(const GemmCall& call, const GemmPart& part, const Chunk& chunk,
                           const ChunkRows& rows, const char* panel, int64_t col, int64_t cols, float* c,
                           int64_t stride_c, bool first, bool last) {
  TileRows x[kAmxSegments];
  for (int64_t r = 0; r < part.rows; r += kAmxTile) {
    rows.of(r / kAmxTile, x);
    for (int64_t j = 0; j < cols; j += kAmxTile) {
      const GemmPart at{part.row + r, at_most(part.rows - r, kAmxTile), part.col + col + j,
                        at_most(cols - j, kAmxTile)};
      // What is finished at once needs no place of its own.
      float* sums = first && last ? c : c + r * stride_c + col + j;
      multiply(x, chunk.count, panel + j / 32 * kPairBytes, at.rows, at.cols, sums, stride_c, first);
      if (!last) continue;
      call.y.dtype == DType::bf16 ? avx512::finish<bf16>(call, at, sums, stride_c)
                                  : avx512::finish<float>(call, at, sums, stride_c);
    }
  }
}

inline void gemm_part(const GemmCall& call, const GemmPart& part, const GemmWorkspace& space, float* memory) {
  char *packed = reinterpret_cast<char*>(memory), *panel = reinterpret_cast<char*>(memory + space.a);
  float* c = memory + space.a + space.panel;
  const TileRegisters registers;
  size_t term = 0;
  int64_t k = 0;
  Chunk chunk;
  for (bool first = true, more = true; more; first = false) {
    more = next_chunk(call.terms, term, k, chunk);
    const ChunkRows rows(chunk, part, packed);
    for (int64_t j = 0; j < part.cols; j += kPanelCols) {
      const int64_t cols = at_most(part.cols - j, kPanelCols);
      decode_chunk(call, chunk, part.col + j, cols, panel);
      multiply_chunk(call, part, chunk, rows, panel, j, cols, c, space.stride_c, first, !more);
    }
  }
}

// Columns col .. col+16 of a bf16 matrix as rows, two terms (rows row .. row+count) a lane.
inline void pack_transposed(const ConstMat& m, int64_t row, int64_t count, int64_t col, int64_t cols,
                            char* to, int64_t stride) {
  const __mmask16 mask = avx512::first(cols);
  const auto part = [&](int64_t r) {
    return r < count ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, m.row<bf16>(row + r) + col))
                     : _mm512_setzero_si512();
  };
  Vec v[kTileSide];
  for (int64_t i = 0; i < count; i += kStepTerms, to += 64) {
#pragma GCC unroll 16
    for (int64_t p = 0; p < kTileSide; ++p)
      v[p].v =
          _mm512_castsi512_ps(_mm512_or_si512(part(i + 2 * p), _mm512_slli_epi32(part(i + 2 * p + 1), 16)));
    avx512::transpose(v);
#pragma GCC unroll 16
    for (int p = 0; p < kTileSide; ++p) _mm512_store_ps(to + p * stride, v[p].v);
  }
}

// Rows row .. row+count, kAmxTile columns: a panel.
inline void pack_panel(const ConstMat& m, int64_t row, int64_t count, int64_t col, int64_t cols,
                       char* panel) {
  const __mmask32 mask = cols >= 32 ? ~0u : (1u << cols) - 1;
  const auto part = [&](int64_t r) {
    return r < count ? _mm512_maskz_loadu_epi16(mask, m.row<bf16>(row + r) + col) : _mm512_setzero_si512();
  };
  for (int64_t i = 0; i < ceil_div(count, kStepTerms) * kStepTerms; i += 2)
    interleave(part(i), part(i + 1), panel + i / kStepTerms * kStepBytes + i % kStepTerms / 2 * 64);
}

inline void add_sums(const GemmTnCall& call, const GemmPart& part, const float* c, int64_t stride_c) {
  if (call.swapped)
    for (int64_t j = 0; j < part.cols; ++j) {
      float* out = call.out.row<float>(part.col + j) + part.row;
      for (int64_t r = 0; r < part.rows; ++r) out[r] = out[r] + c[r * stride_c + j] * call.scale;
    }
  else
    avx512::add_scaled(call, part, c, stride_c);
}

// call.a is the narrower operand: its columns are the part's rows, whichever way call.out lies.
inline void gemm_tn_part(const GemmTnCall& call, const GemmPart& part, const GemmWorkspace& space,
                         float* memory) {
  char *left = reinterpret_cast<char*>(memory), *panel = reinterpret_cast<char*>(memory + space.a);
  float* c = memory + space.a + space.panel;
  const TileRegisters registers;
  for (int64_t m = 0; m < call.a.rows; m += kAmxSteps * kStepTerms) {
    const int64_t count = at_most(call.a.rows - m, kAmxSteps * kStepTerms);
    const int64_t steps = ceil_div(count, kStepTerms), stride = (steps | 1) * 64;
    for (int64_t r = 0; r < part.rows; r += kTileSide)
      pack_transposed(call.a, m, count, part.row + r, at_most(part.rows - r, kTileSide), left + r * stride,
                      stride);
    for (int64_t j = 0; j < part.cols; j += kAmxTile) {
      const int64_t cols = at_most(part.cols - j, kAmxTile);
      pack_panel(call.b, m, count, part.col + j, cols, panel);
      for (int64_t r = 0; r < part.rows; r += kAmxTile) {
        const TileRows x{left + r * stride, stride, steps};
        multiply(&x, 1, panel, part.rows - r, cols, c + r * space.stride_c + j, space.stride_c, m == 0);
      }
    }
  }
  add_sums(call, part, c, space.stride_c);
}

}  // namespace qlora::amx
#pragma GCC pop_options
