// Panels of W for the tile registers: of each step's 32 terms, 16 rows of 16 columns' pairs of bf16.

// Elements of a row of W, 32 at a time as bf16, from a column that 32 divides.
template <Format F>
class Row32 {
 public:
  Row32() = default;
  Row32(const WeightView& w, int64_t row, int64_t col) : row_(w, row, false), col_(col) {}
  __m512i next() {
    const __m256i low = half(), high = half();
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }

 private:
  __m256i half() {
    if (left_ == 0) left_ = row_.block(col_);
    const __m256i bits = as_bf16(row_.at(col_));
    col_ += 16;
    left_ -= 16;
    return bits;
  }
  avx512::WeightRow<F> row_;
  int64_t col_, left_ = 0;
};

template <>
class Row32<Format::bf16> {
 public:
  Row32() = default;
  Row32(const WeightView& w, int64_t row, int64_t col)
      : p_(static_cast<const bf16*>(w.data) + row * w.cols + col), scale_(w.scale) {}
  __m512i next() {
    const __m512i v = _mm512_loadu_si512(p_);
    const bf16* p = p_;
    p_ += 32;
    return scale_ == 1.f ? v : bf16_pair(mul(load(p), set1(scale_)), mul(load(p + 16), set1(scale_)));
  }

 private:
  const bf16* p_;
  float scale_;
};

// Codes of four bits: a permutation of 32 lanes looks up 32 elements. The table stands twice in it, so that
// the fifth bit of a code, whatever it is, says nothing.
template <Format F>
class BnbRow32 {
 public:
  BnbRow32() = default;
  BnbRow32(const WeightView& w, int64_t row, int64_t col)
      : codes_(static_cast<const uint8_t*>(w.data)), i_(row * w.cols + col), w_(&w) {}
  __m512i next() {
    if (left_ == 0) next_block();
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes_ + (i_ >> 1))));
    i_ += 32;
    left_ -= 32;
    const __m512i codes = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
    return _mm512_permutexvar_epi16(codes, table_);
  }

 private:
  void next_block() {
    const int64_t index = i_ >> __builtin_ctz(static_cast<unsigned>(w_->block_size));
    const float* codebook = F == Format::nf4 ? kNf4.data() : kFp4.data();
    const Vec w = mul(mul(load(codebook), set1(w_->block_scale(index))), set1(w_->scale));
    table_ = _mm512_broadcast_i64x4(as_bf16(w));
    left_ = (index + 1) * w_->block_size - i_;
  }
  __m512i table_;
  const uint8_t* codes_;
  int64_t i_, left_ = 0;
  const WeightView* w_;
};
template <>
class Row32<Format::nf4> : public BnbRow32<Format::nf4> {
  using BnbRow32<Format::nf4>::BnbRow32;
};
template <>
class Row32<Format::fp4> : public BnbRow32<Format::fp4> {
  using BnbRow32<Format::fp4>::BnbRow32;
};

// Whether Row32 serves w: its groups of 32 elements lie whole in one block, at whole bytes.
inline bool in_32(const WeightView& w) {
  if (w.format != Format::nf4 && w.format != Format::fp4) return true;
  return w.cols % 32 == 0 && w.block_size % 32 == 0 && (w.block_size & (w.block_size - 1)) == 0;
}

// Any n <= 32 elements of any row; the others are 0.
inline __m512i decode_part32(const WeightView& w, int64_t row, int64_t col, int64_t n) {
  if (w.format == Format::f32 && n > 0) {  // LoRA's own, as wide as its rank
    const float* p = static_cast<const float*>(w.data) + row * w.cols + col;
    const Vec low = avx512::load_part(p, n);
    const Vec high = n > 16 ? avx512::load_part(p + 16, n - 16) : avx512::zero();
    return bf16_pair(mul(low, set1(w.scale)), mul(high, set1(w.scale)));
  }
  float part[32] = {};
  if (n > 0) decode_row(w, row, col, n, part);
  return bf16_pair(load(part), load(part + 16));
}

// Rows col .. col+16 of W [N, K], `count` elements from k: tile `t` of each step.
template <Format F>
inline void decode_nt(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, char* tile) {
  Row32<F> row[kTileSide];
  for (int64_t r = 0; r < cols; ++r) row[r] = Row32<F>(w, col + r, k);
  Vec v[kTileSide];
  for (int64_t i = 0; i < count; i += kStepTerms, tile += kStepBytes) {
    const int64_t n = count - i;
    const bool whole = n >= kStepTerms && in_32(w);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kTileSide; ++r)
      v[r].v = _mm512_castsi512_ps(r >= cols ? _mm512_setzero_si512()
                                   : whole   ? row[r].next()
                                             : decode_part32(w, col + r, k + i, at_most(n, 32)));
    avx512::transpose(v);
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r) _mm512_store_ps(tile + r * 64, v[r].v);
  }
}

// Rows k .. k+count of W [K, N], kPanelCols columns from col. Of a wide row that is a piece which the
// hardware does not see coming.
inline constexpr int64_t kPairsAhead = 32;
template <Format F>
inline void decode_nn(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, char* panel) {
  for (int64_t i = 0; i < count; i += 2) {
    const bool pair = i + 1 < count;
    Row32<F> row0(w, k + i, col), row1(w, k + i + pair, col);
    if (k + i + 1 + kPairsAhead < w.rows)
      for (const int64_t r : {0, 1}) avx512::prefetch<F>(w, k + i + r + kPairsAhead, col, cols);
    char* to = panel + i / kStepTerms * kStepBytes + i % kStepTerms / 2 * 64;
    for (int64_t j = 0; j < cols; j += 32, to += kPairBytes) {
      const int64_t n = cols - j;
      const bool whole = n >= 32 && in_32(w);
      const __m512i even = whole ? row0.next() : decode_part32(w, k + i, col + j, at_most(n, 32));
      const __m512i odd = !pair   ? _mm512_setzero_si512()
                          : whole ? row1.next()
                                  : decode_part32(w, k + i + 1, col + j, at_most(n, 32));
      interleave(even, odd, to);
    }
  }
  zero_pairs(count, cols, panel);
}

// One term's part of panels: `count` terms from k, columns col .. col+cols (at most kPanelCols).
template <Format F>
inline void decode_of(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                      int64_t count, char* panel) {
  if (!transposed_w) return decode_nn<F>(w, col, cols, k, count, panel);
  for (int64_t j = 0; j < cols; j += kTileSide)
    decode_nt<F>(w, col + j, at_most(cols - j, kTileSide), k, count, panel + tile_offset(j));
}

inline void decode(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                   int64_t count, char* panel) {
  switch (w.format) {
    case Format::f32:
      return decode_of<Format::f32>(transposed_w, w, col, cols, k, count, panel);
    case Format::f16:
      return decode_of<Format::f16>(transposed_w, w, col, cols, k, count, panel);
    case Format::bf16:
      return decode_of<Format::bf16>(transposed_w, w, col, cols, k, count, panel);
    case Format::nf4:
      return decode_of<Format::nf4>(transposed_w, w, col, cols, k, count, panel);
    case Format::fp4:
      return decode_of<Format::fp4>(transposed_w, w, col, cols, k, count, panel);
    case Format::int8:
      return decode_of<Format::int8>(transposed_w, w, col, cols, k, count, panel);
    case Format::q4_0:
      return decode_of<Format::q4_0>(transposed_w, w, col, cols, k, count, panel);
    case Format::q4_1:
      return decode_of<Format::q4_1>(transposed_w, w, col, cols, k, count, panel);
    case Format::q8_0:
      return decode_of<Format::q8_0>(transposed_w, w, col, cols, k, count, panel);
  }
}
