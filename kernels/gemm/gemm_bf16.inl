// The products of bf16 operands, on tiles and by vdpbf16ps. Steps of terms (kernels/common/panels_bf16.inl)
// begin anew at each GemmTerm, so that an output element hangs on the order of its terms alone: blocks of K,
// rows, columns and threads are free.

inline constexpr int64_t kPairBytes = kBf16Steps * kStepBytes;
inline constexpr int64_t kPanelCols = 2 * kBf16Tile;  // decoded at a time: a block of 64 codes is set up once

// Two tiles, 16 columns each, make up a step of kBf16Tile columns.
inline int64_t tile_offset(int64_t col) { return col / 32 * kPairBytes + col % 32 / 16 * 1024; }

// Rounded as everywhere, but that subnormals become 0: the tiles' products take them for 0 in any case.
inline __m256i as_bf16(Vec v) { return (__m256i)_mm512_cvtneps_pbh(v.v); }
inline __m512i bf16_pair(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v); }

// Rows count .. of the last step, which no term fills.
inline void zero_pairs(int64_t count, int64_t cols, char* panel) {
  for (int64_t i = (count + 1) / 2 * 2; i % kStepTerms != 0; i += 2)
    for (int64_t j = 0; j < cols; j += 32) {
      char* to = panel + j / 32 * kPairBytes + i / kStepTerms * kStepBytes + i % kStepTerms / 2 * 64;
      _mm512_store_si512(to, _mm512_setzero_si512());
      _mm512_store_si512(to + 1024, _mm512_setzero_si512());
    }
}

#include "kernels/gemm/gemm_bf16_decode.inl"

// Terms of a sum that panels hold at a time: of one GemmTerm, `count` from k.
struct Segment {
  const GemmTerm* term;
  int64_t k, count;
  bool direct;  // x's own rows serve; else a packed copy does
  int64_t steps() const { return steps_of(count); }
  int64_t stride() const { return (steps() | 1) * 64; }  // of a packed copy: no power of two
};

struct Chunk {
  Segment segment[kBf16Segments];
  int64_t count = 0, steps = 0;
  bool last = false;  // no terms are left behind it
};

// The chunks of a sum, one after another, of about one size.
class Chunks {
 public:
  // cols: of the task. Few columns are not worth a copy of x.
  Chunks(std::span<const GemmTerm> terms, int64_t cols) : terms_(terms), copies_(cols > kPanelCols) {
    int64_t steps = 0;
    for (const GemmTerm& t : terms) steps += steps_of(t.x.cols);
    const int64_t chunks = ceil_div(steps, kBf16Steps);
    room_ = chunks == 0 ? 0 : ceil_div(steps, chunks);
  }
  Chunk next() {
    Chunk chunk;
    for (; t_ < terms_.size(); ++t_, k_ = 0)
      while (k_ < terms_[t_].x.cols) {
        const int64_t room = room_ - chunk.steps;
        if (room == 0 || chunk.count == kBf16Segments) return chunk;
        const bool direct = served_directly(terms_[t_].x);
        int64_t count = at_most(terms_[t_].x.cols - k_, room * kStepTerms);
        if (direct && count > kStepTerms) count -= count % kStepTerms;  // the rest is packed
        Segment& s = chunk.segment[chunk.count++];
        s = {&terms_[t_], k_, count, direct && count % kStepTerms == 0};
        chunk.steps += s.steps();
        k_ += count;
      }
    chunk.last = true;
    return chunk;
  }

 private:
  // Rows that begin in the middle of a line take two loads where one would do, and those whose distance is a
  // multiple of 4096 bytes fall on one set of the nearest cache.
  bool served_directly(const ConstMat& x) const {
    const bool lines = x.stride % 32 == 0 && reinterpret_cast<uintptr_t>(x.data) % 64 == 0;
    return !copies_ || (lines && x.stride % 2048 != 0);
  }
  std::span<const GemmTerm> terms_;
  bool copies_;
  size_t t_ = 0;
  int64_t k_ = 0, room_;
};

// Rows of x, filled up with zeros to whole steps and kBf16Tile rows.
inline void pack_rows(const Segment& s, int64_t row, int64_t rows, char* to) {
  for (int64_t r = 0; r < kBf16Tile; ++r, to += s.stride())
    for (int64_t i = 0; i < s.steps(); ++i) {
      const int64_t n = r < rows ? s.count - i * kStepTerms : 0;
      const __mmask32 mask = n >= kStepTerms ? ~0u : (1u << n) - 1;
      const bf16* from = n > 0 ? s.term->x.row<bf16>(row + r) + s.k + i * kStepTerms : nullptr;
      _mm512_store_si512(to + i * 64, _mm512_maskz_loadu_epi16(mask, from));
    }
}

// Up to kBf16Tile rows of a chunk, as tiles take them; what needs a copy has it at `packed`.
inline void chunk_rows(const Chunk& chunk, int64_t row, int64_t rows, char* packed, TileRows* x) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Segment& s = chunk.segment[i];
    if (s.direct && rows == kBf16Tile) {
      const bf16* from = s.term->x.row<bf16>(row) + s.k;
      x[i] = {reinterpret_cast<const char*>(from), s.term->x.stride * 2, s.steps()};
      continue;
    }
    x[i] = {packed, s.stride(), s.steps()};
    packed += kBf16Tile * s.stride();
  }
}

// The copies of all rows of a part, kBf16Tile rows after kBf16Tile rows.
inline void pack_chunk(const Chunk& chunk, const GemmPart& part, char* packed) {
  for (int64_t r = 0; r < part.rows; r += kBf16Tile) {
    const int64_t rows = at_most(part.rows - r, kBf16Tile);
    char* to = packed + r * kBf16PackedBytes;
    for (int64_t i = 0; i < chunk.count; ++i) {
      const Segment& s = chunk.segment[i];
      if (s.direct && rows == kBf16Tile) continue;
      pack_rows(s, part.row + r, rows, to);
      to += kBf16Tile * s.stride();
    }
  }
}

// At most kPanelCols columns of a chunk.
inline void decode_chunk(const GemmCall& call, const Chunk& chunk, int64_t col, int64_t cols, char* panel) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Segment& s = chunk.segment[i];
    decode(call.transposed_w, s.term->w, col, cols, s.k, s.count, panel);
    panel += s.steps() * kStepBytes;
  }
}

// Whether whole lines of y are written without being read first, and past the caches: what is larger would be
// out of the nearer ones before its reader comes.
inline bool written_past_caches(const Mat& y) {
  constexpr int64_t kCached = int64_t{128} << 10;
  const int64_t size = static_cast<int64_t>(size_of(y.dtype));
  return y.rows * y.cols * size > kCached && y.stride * size % 64 == 0 &&
         reinterpret_cast<uintptr_t>(y.data) % 64 == 0;
}

// Bias and residual, and the one rounding, of a row's `cols` sums: at most kBf16Tile.
template <class T>
inline void finish_row(const GemmCall& call, int64_t row, int64_t col, int64_t cols, const float* c,
                       bool past_caches) {
  const GemmEpilogue& e = call.epilogue;
  const int64_t n = cols - kTileSide;
  Vec low = load(c), high = load(c + kTileSide);
  if (e.bias != nullptr) {
    low = avx512::add(low, avx512::load_part(e.bias + col, cols));
    if (n > 0) high = avx512::add(high, avx512::load_part(e.bias + col + kTileSide, n));
  }
  if (e.residual) {
    low = avx512::add(low, avx512::residual_part(e.residual, row, col, cols));
    if (n > 0) high = avx512::add(high, avx512::residual_part(e.residual, row, col + kTileSide, n));
  }
  T* y = call.y.row<T>(row) + col;
  const bool whole = cols == kBf16Tile;
  if constexpr (std::is_same_v<T, bf16>) {
    const __m512i bits = bf16_pair(low, high);
    if (past_caches && whole)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(y), bits);
    else
      _mm512_mask_storeu_epi16(y, whole ? ~0u : (1u << cols) - 1, bits);
  } else if (past_caches && whole) {
    _mm512_stream_ps(y, low.v);
    _mm512_stream_ps(y + kTileSide, high.v);
  } else {
    avx512::store_part(y, low, cols);
    if (n > 0) avx512::store_part(y + kTileSide, high, n);
  }
}

// The panels of at most kPanelCols columns, row by row: memory takes two lines of 64 bytes that lie side by
// side in the time of one. Their sums are kBf16Tile a row, panel_c apart.
template <class T>
inline void finish_rows(const GemmCall& call, const GemmPart& part, const float* c, int64_t panel_c) {
  const bool past_caches = written_past_caches(call.y);
  for (int64_t r = 0; r < part.rows; ++r, c += kBf16Tile)
    for (int64_t j = 0; j < part.cols; j += kBf16Tile)
      finish_row<T>(call, part.row + r, part.col + j, at_most(part.cols - j, kBf16Tile),
                    c + j / kBf16Tile * panel_c, past_caches);
}

inline void finish(const GemmCall& call, const GemmPart& part, const float* c, int64_t panel_c) {
  call.y.dtype == DType::bf16 ? finish_rows<bf16>(call, part, c, panel_c)
                              : finish_rows<float>(call, part, c, panel_c);
}

// Chunk by chunk and panel by panel: a panel's kBf16Tile columns stay in the nearest cache while the rows
// pass by. Stores hold up the tiles' loads, of which each is likely to share its place in a page with one of
// them: so rows are copied, panels decoded and sums finished many at a time, not between products.
inline void gemm_part(const GemmCall& call, const GemmPart& part, const GemmWorkspace& space, float* memory) {
  char *packed = reinterpret_cast<char*>(memory), *panels = reinterpret_cast<char*>(memory + space.a);
  const TileRegisters registers;
  Chunks chunks(call.terms, part.cols);
  // Sums lie panel by panel; what one chunk completes needs no place of its own.
  const int64_t panel_c = ceil_div(part.rows, kBf16Tile) * kBf16Tile * kBf16Tile;
  TileRows x[kBf16Segments];
  for (bool first = true, more = true; more; first = false) {
    const Chunk chunk = chunks.next();
    more = !chunk.last;
    pack_chunk(chunk, part, packed);
    for (int64_t j = 0; j < part.cols; j += kPanelCols) {
      const GemmPart both{part.row, part.rows, part.col + j, at_most(part.cols - j, kPanelCols)};
      float* c = memory + space.a + space.panel + (first && chunk.last ? 0 : j / kBf16Tile * panel_c);
      decode_chunk(call, chunk, both.col, both.cols, panels);
      for (int64_t half = 0; half * kBf16Tile < both.cols; ++half)
        for (int64_t r = 0; r < part.rows; r += kBf16Tile) {
          const int64_t rows = at_most(part.rows - r, kBf16Tile);
          chunk_rows(chunk, part.row + r, rows, packed + r * kBf16PackedBytes, x);
          multiply<Rows::once>(x, chunk.count, panels + half * kPairBytes, rows,
                               at_most(both.cols - half * kBf16Tile, kBf16Tile),
                               c + half * panel_c + r * kBf16Tile, kBf16Tile, first);
        }
      if (chunk.last) finish(call, both, c, panel_c);
    }
  }
  _mm_sfence();  // those stores are in no order otherwise
}

// Rows row .. row+count, kBf16Tile columns: a panel.
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

// Asks for columns col .. col+cols in the order in which they lie, which the hardware sees coming: panels
// take a line of each row.
inline void bring_near(const ConstMat& m, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; c += 32) _mm_prefetch(m.row<bf16>(row + r) + col + c, _MM_HINT_T1);
}

// call.a is the narrower operand: its columns are the part's rows, whichever way call.out lies.
inline void gemm_tn_part(const GemmTnCall& call, const GemmPart& part, const GemmWorkspace& space,
                         float* memory) {
  char *left = reinterpret_cast<char*>(memory), *panel = reinterpret_cast<char*>(memory + space.a);
  float* c = memory + space.a + space.panel;
  const TileRegisters registers;
  for (int64_t m = 0; m < call.a.rows; m += kBf16Steps * kStepTerms) {
    const int64_t count = at_most(call.a.rows - m, kBf16Steps * kStepTerms);
    const int64_t steps = ceil_div(count, kStepTerms), stride = (steps | 1) * 64;
    bring_near(call.b, m, count, part.col, part.cols);
    for (int64_t r = 0; r < part.rows; r += kTileSide)
      pack_transposed(call.a, m, count, part.row + r, at_most(part.rows - r, kTileSide), left + r * stride,
                      stride);
    for (int64_t j = 0; j < part.cols; j += kBf16Tile) {
      const int64_t cols = at_most(part.cols - j, kBf16Tile);
      pack_panel(call.b, m, count, part.col + j, cols, panel);
      for (int64_t r = 0; r < part.rows; r += kBf16Tile) {
        const TileRows x{left + r * stride, stride, steps};
        multiply(&x, 1, panel, part.rows - r, cols, c + r * space.stride_c + j, space.stride_c, m == 0);
      }
    }
  }
  add_sums(call, part, c, space.stride_c);
}
