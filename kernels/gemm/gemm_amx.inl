// The products of bf16 operands on tiles. Steps of terms (kernels/common/tiles_amx.inl) begin anew at each
// GemmTerm, so that an output element hangs on the order of its terms alone: blocks of K, rows, columns and
// threads are free.

inline constexpr int64_t kPairBytes = kAmxSteps * kStepBytes;
inline constexpr int64_t kPanelCols = 2 * kAmxTile;  // decoded at a time: a block of 64 codes is set up once

// Two tiles, 16 columns each, make up a step of kAmxTile columns.
inline int64_t tile_offset(int64_t col) { return col / 32 * kPairBytes + col % 32 / 16 * 1024; }

inline __m512i bf16_pair(Vec low, Vec high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(avx512::bf16_bits(low))),
                            _mm512_cvtepi32_epi16(avx512::bf16_bits(high)), 1);
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

// Terms of a sum that panels hold at a time: of one GemmTerm, `count` from k.
struct Segment {
  const GemmTerm* term;
  int64_t k, count;
  bool direct;  // x's own rows serve; else a packed copy does
  int64_t steps() const { return steps_of(count); }
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

// Rows of x, filled up with zeros to whole steps and kAmxTile rows.
inline void pack_rows(const Segment& s, int64_t row, int64_t rows, char* to) {
  const size_t bytes = static_cast<size_t>(s.steps() * 64), filled = static_cast<size_t>(s.count) * 2;
  for (int64_t r = 0; r < kAmxTile; ++r, to += s.stride()) {
    if (r < rows) std::memcpy(to, s.term->x.row<bf16>(row + r) + s.k, filled);
    std::memset(r < rows ? to + filled : to, 0, r < rows ? bytes - filled : bytes);
  }
}

// Up to kAmxTile rows of a chunk, as tiles take them: they stay in the nearest cache while panels pass by.
inline void chunk_rows(const Chunk& chunk, int64_t row, int64_t rows, char* packed, TileRows* x) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Segment& s = chunk.segment[i];
    if (s.direct && rows == kAmxTile) {
      const bf16* from = s.term->x.row<bf16>(row) + s.k;
      x[i] = {reinterpret_cast<const char*>(from), s.term->x.stride * 2, s.steps()};
      continue;
    }
    pack_rows(s, row, rows, packed);
    x[i] = {packed, s.stride(), s.steps()};
    packed += kAmxTile * s.stride();
  }
}

inline void decode_chunk(const GemmCall& call, const Chunk& chunk, const GemmPart& part, char* panels) {
  for (int64_t j = 0; j < part.cols; j += kPanelCols) {
    char* panel = panels + tile_offset(j);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const Segment& s = chunk.segment[i];
      decode(call.transposed_w, s.term->w, part.col + j, at_most(part.cols - j, kPanelCols), s.k, s.count,
             panel);
      panel += s.steps() * kStepBytes;
    }
  }
}

// kAmxTile rows and columns at a time, finished as soon as their sums are.
inline void gemm_part(const GemmCall& call, const GemmPart& part, const GemmWorkspace& space, float* memory) {
  char *packed = reinterpret_cast<char*>(memory), *panels = reinterpret_cast<char*>(memory + space.a);
  float* c = memory + space.a + space.panel;
  const TileRegisters registers;
  size_t term = 0;
  int64_t k = 0;
  Chunk chunk;
  TileRows x[kAmxSegments];
  for (bool first = true, more = true; more; first = false) {
    more = next_chunk(call.terms, term, k, chunk);
    decode_chunk(call, chunk, part, panels);
    for (int64_t r = 0; r < part.rows; r += kAmxTile) {
      const int64_t rows = at_most(part.rows - r, kAmxTile);
      chunk_rows(chunk, part.row + r, rows, packed, x);
      for (int64_t j = 0; j < part.cols; j += kAmxTile) {
        const GemmPart at{part.row + r, rows, part.col + j, at_most(part.cols - j, kAmxTile)};
        // What is finished at once needs no place of its own.
        float* sums = first && !more ? c : c + r * space.stride_c + j;
        multiply(x, chunk.count, panels + tile_offset(j), rows, at.cols, sums, space.stride_c, first);
        if (more) continue;
        call.y.dtype == DType::bf16 ? avx512::finish<bf16>(call, at, sums, space.stride_c)
                                    : avx512::finish<float>(call, at, sums, space.stride_c);
      }
    }
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
