// Attention of bf16 operands on tiles, AMX's or of vdpbf16ps. Products take p and ds rounded to bf16, as
// FlashAttention has it. Scores have keys for rows and queries for lanes: a task keeps queries and goes
// through the keys, so that a vector's statistics are its lanes' own. Sums over keys are kept transposed, so
// that scores go into the next product as they lie, and are turned once at the end.

using attention::BackwardMemory;
using attention::DocumentKeys;
using attention::ForwardMemory;
using attention::KeyBlock;
using attention::KeyBlocks;
using attention::kTile;

// One head's columns of rows of m.
struct AttentionHead {
  const ConstMat& m;
  int64_t col, dim;
};

// 2^x by a polynomial over [0, 1): within 2^-18.5 of it relatively, 500 times less than the rounding to bf16
// that follows.
inline __m512 attention_exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.353416778e-2f), _mm512_set1_ps(5.201146007e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.414427549e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.930038333e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.000002623f));
  return _mm512_scalef_ps(p, x);
}
inline constexpr float kLog2E = 1.44269504f, kLn2 = .693147181f;

// Of 32 keys and 32 queries.
enum class Sight { none, some, all };

struct AttentionSight {
  avx512::AttentionBand band;
  Sight of(int64_t r, int64_t i) const {
    if (i + 31 < r + band.first || i > r + 31 + band.last) return Sight::none;
    return r + 31 + band.first <= i && i + 31 <= r + band.last ? Sight::all : Sight::some;
  }
  __mmask16 lanes(int64_t r, int64_t i) const {
    return static_cast<__mmask16>(avx512::first(r + band.last + 1 - i) & ~avx512::first(r + band.first - i));
  }
};

// c[rows, lanes] (rows of kTile) (+)= x b, lanes of 32.
inline void attention_product(const TileRows* x, int64_t parts, int64_t rows, int64_t lanes, const char* b,
                              float* c, bool first) {
  int64_t steps = 0;
  for (int64_t p = 0; p < parts; ++p) steps += x[p].steps;
  for (int64_t r = 0; r < rows; r += 32) {
    TileRows part[2];
    for (int64_t p = 0; p < parts; ++p) part[p] = {x[p].data + r * x[p].stride, x[p].stride, x[p].steps};
    for (int64_t j = 0; j < lanes; j += 32)
      multiply(part, parts, b + j / 32 * steps * kStepBytes, rows - r, 32, c + r * kTile + j, kTile, first);
  }
}

// A left operand, terms along the head: the rows themselves, or where tiles would reach past them a copy
// filled up with zeros.
inline TileRows attention_rows(const AttentionHead& h, int64_t row, int64_t rows, char* copy) {
  const int64_t steps = steps_of(h.dim);
  if (rows % 32 == 0 && h.dim % kStepTerms == 0)
    return {reinterpret_cast<const char*>(h.m.row<bf16>(row) + h.col), h.m.stride * 2, steps};
  const TileRows x{copy, attention::filled_row(h.dim), steps};
  const size_t bytes = static_cast<size_t>(steps * 64), filled = static_cast<size_t>(h.dim) * 2;
  for (int64_t r = 0; r < (rows + 31) / 32 * 32; ++r, copy += x.stride) {
    if (r < rows) std::memcpy(copy, h.m.row<bf16>(row + r) + h.col, filled);
    std::memset(r < rows ? copy + filled : copy, 0, r < rows ? bytes - filled : bytes);
  }
  return x;
}

// A left operand, terms along the rows: [padded head, kTile], zeros behind `rows`.
inline void attention_across(const AttentionHead& h, int64_t row, int64_t rows, char* to) {
  constexpr int64_t kStride = kTile * 2;
  if (rows <= kStepTerms) std::memset(to, 0, static_cast<size_t>((h.dim + 15) / 16 * 16 * kStride));
  for (int64_t c = 0; c < h.dim; c += kTileSide)
    pack_transposed(h.m, row, rows, h.col + c, at_most(h.dim - c, kTileSide), to + c * kStride, kStride);
}

// A right operand: kTile rows (zeros behind `rows`) as columns, terms along the head.
inline void attention_columns_of(const AttentionHead& h, int64_t row, int64_t rows, char* to) {
  const int64_t steps = steps_of(h.dim);
  for (int64_t g = 0; g < kTile; g += kTileSide)
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t n = h.dim - s * kStepTerms;
      const __mmask32 mask = n >= kStepTerms ? ~0u : (1u << n) - 1;
      Vec v[kTileSide];
#pragma GCC unroll 16
      for (int64_t r = 0; r < kTileSide; ++r)
        v[r].v = _mm512_castsi512_ps(
            g + r < rows ? _mm512_maskz_loadu_epi16(mask, h.m.row<bf16>(row + g + r) + h.col + s * kStepTerms)
                         : _mm512_setzero_si512());
      avx512::transpose(v);
      char* tile = to + g / 32 * steps * kStepBytes + s * kStepBytes + g % 32 / 16 * 1024;
#pragma GCC unroll 16
      for (int r = 0; r < kTileSide; ++r) _mm512_store_ps(tile + r * 64, v[r].v);
    }
}

// The columns of sums [head, kTile] become rows of one head, each times its factor; place(i) is where row i
// stands among the columns.
template <class Place>
inline void attention_turn(const float* sums, const Mat& m, int64_t row, int64_t rows, int64_t col,
                           int64_t dim, const float* factor, const Place& place) {
  alignas(64) float lines[kTileSide * kTile];
  for (int64_t c = 0; c < dim; c += kTileSide) {
    for (int64_t g = 0; g < kTile; g += kTileSide) {
      Vec v[kTileSide];
      for (int r = 0; r < kTileSide; ++r) v[r] = load(sums + (c + r) * kTile + g);
      avx512::transpose(v);
      for (int r = 0; r < kTileSide; ++r) store(lines + (g + r) * kTileSide, v[r]);
    }
    for (int64_t i = 0; i < rows; ++i)
      avx512::store_part(m.row<bf16>(row + i) + col + c,
                         mul(load(lines + place(i) * kTileSide), set1(factor[i])), dim - c);
  }
}

// Scores that are no multiple of the products by a positive number are made first.
inline bool attention_plain(const AttentionShape& s) { return s.softcap <= 0 && s.scale > 0; }
inline void attention_make_scores(const AttentionShape& s, int64_t rows, int64_t lanes, float* scores) {
  const avx512::AttentionScore score(s);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = r * kTile; i < r * kTile + lanes; i += 16) store(scores + i, score.of(load(scores + i)));
}

// The largest of 32 rows' scores that two vectors of lanes see.
template <bool kAll>
inline void attention_most(const AttentionSight& sight, int64_t r0, int64_t i, const float* s, __m512* most) {
  __m512 odd[2] = {most[0], most[1]};
  for (int64_t r = r0; r < r0 + 32; r += 2)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const float* at = s + r * kTile + i + 16 * h;
      if constexpr (kAll) {
        most[h] = _mm512_max_ps(_mm512_load_ps(at), most[h]);
        odd[h] = _mm512_max_ps(_mm512_load_ps(at + kTile), odd[h]);
      } else {
        most[h] = _mm512_mask_max_ps(most[h], sight.lanes(r, i + 16 * h), _mm512_load_ps(at), most[h]);
        odd[h] =
            _mm512_mask_max_ps(odd[h], sight.lanes(r + 1, i + 16 * h), _mm512_load_ps(at + kTile), odd[h]);
      }
    }
  for (int h = 0; h < 2; ++h) most[h] = _mm512_max_ps(most[h], odd[h]);
}

// Two rows of lanes as pairs of terms: a row of a tile.
inline void attention_pair(__m512 even, __m512 odd, char* to) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both));
}

// p = 2^(score * factor + shift) of 32 rows, 0 where nothing is seen: added to `sums` and stored as pairs.
template <bool kAll>
inline void attention_weights(const AttentionSight& sight, int64_t r0, int64_t i, const float* s,
                              __m512 factor, const __m512* shift, __m512* sums, char* pairs) {
  for (int64_t r = r0; r < r0 + 32; r += 2)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512 p[2];
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        p[k] = attention_exp2(
            _mm512_fmadd_ps(_mm512_load_ps(s + (r + k) * kTile + i + 16 * h), factor, shift[h]));
        if constexpr (!kAll) p[k] = _mm512_maskz_mov_ps(sight.lanes(r + k, i + 16 * h), p[k]);
        sums[2 * h + k] = _mm512_add_ps(sums[2 * h + k], p[k]);
      }
      attention_pair(p[0], p[1], pairs + (r - r0) / 2 * 64 + h * 1024);
    }
}

// A task's online softmax. The maximum that scores are taken from moves on only where one is more than 2^8
// times its weight: p loses nothing by being at most 256, and sums are seldom rescaled.
struct AttentionSoftmax {
  float factor, slack;
  float *top, *total, *rescale;

  AttentionSoftmax(const AttentionShape& s, float* top, float* total, float* rescale)
      : factor(attention_plain(s) ? s.scale * kLog2E : kLog2E),
        slack(8 / factor),
        top(top),
        total(total),
        rescale(rescale) {
    for (int64_t i = 0; i < kTile; ++i) {
      top[i] = avx512::kAttentionLeast;
      total[i] = 0;
    }
  }
  // Scores [rows, kTile] become pairs; whether earlier sums must be multiplied by `rescale`.
  bool operator()(const AttentionSight& sight, int64_t rows, int64_t lanes, const float* s, char* pairs) {
    bool moved = false;
    for (int64_t i = 0; i < lanes; i += 32, pairs += rows / 32 * kStepBytes) {
      __m512 most[2] = {_mm512_set1_ps(avx512::kAttentionLeast), most[0]}, shift[2];
      for (int64_t r = 0; r < rows; r += 32)
        if (const Sight seen = sight.of(r, i); seen == Sight::all)
          attention_most<true>(sight, r, i, s, most);
        else if (seen == Sight::some)
          attention_most<false>(sight, r, i, s, most);
      __m512 sums[4];
      for (int h = 0; h < 2; ++h) {
        const int64_t at = i + 16 * h;
        const __m512 old = _mm512_load_ps(top + at);
        const __mmask16 grows =
            _mm512_cmp_ps_mask(most[h], _mm512_add_ps(old, _mm512_set1_ps(slack)), _CMP_NLE_UQ);
        const __m512 now = _mm512_mask_mov_ps(old, grows, most[h]);
        const __m512 keep = _mm512_mask_mov_ps(
            _mm512_set1_ps(1), grows,
            attention_exp2(_mm512_mul_ps(_mm512_sub_ps(old, now), _mm512_set1_ps(factor))));
        moved |= grows != 0;
        _mm512_store_ps(top + at, now);
        _mm512_store_ps(rescale + at, keep);
        shift[h] = _mm512_mul_ps(now, _mm512_set1_ps(-factor));
        sums[2 * h] = _mm512_mul_ps(_mm512_load_ps(total + at), keep);
        sums[2 * h + 1] = _mm512_setzero_ps();
      }
      for (int64_t r = 0; r < rows; r += 32) {
        char* to = pairs + r / 32 * kStepBytes;
        const Sight seen = sight.of(r, i);
        if (seen == Sight::all)
          attention_weights<true>(sight, r, i, s, _mm512_set1_ps(factor), shift, sums, to);
        else if (seen == Sight::some)
          attention_weights<false>(sight, r, i, s, _mm512_set1_ps(factor), shift, sums, to);
        else
          std::memset(to, 0, kStepBytes);
      }
      for (int h = 0; h < 2; ++h)
        _mm512_store_ps(total + i + 16 * h, _mm512_add_ps(sums[2 * h], sums[2 * h + 1]));
    }
    return moved;
  }
};

inline DocumentKeys attention_keys(const attention::Args& a, const attention::Rows& d, bool backward,
                                   char* own) {
  return {a, d, KeyBlocks(a.padded_dim(), backward), own};
}

inline void attention_prepare_values(const attention::Args& a, const attention::Rows& d, int64_t first,
                                     char* work) {
  attention_across({a.v, d.k_head * a.dim(), a.dim()}, d.k_begin + first, at_most(d.k_count - first, kTile),
                   attention_keys(a, d, false, work + ForwardMemory(a).own)[first].across);
}

// Queries [first, first + kTile) of one document and head.
inline void attention_forward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   char* work) {
  const TileRegisters registers;
  const ForwardMemory m(a);
  const auto floats = [&](int64_t at) { return reinterpret_cast<float*>(work + at); };
  const int64_t dim = a.dim(), queries = std::min(kTile, d.q_count - first), lanes = (queries + 31) / 32 * 32;
  const AttentionHead q{a.q, d.q_head * dim, dim}, k{a.k, d.k_head * dim, dim};
  const DocumentKeys blocks = attention_keys(a, d, false, work + m.own);
  float *scores = floats(m.scores), *o = floats(m.sums), *factor = floats(m.factor);
  if (d.k_count <= kTile) attention_prepare_values(a, d, 0, work);
  AttentionSoftmax softmax(a.shape, floats(m.top), floats(m.total), factor);
  attention_columns_of(q, d.q_begin + first, queries, work + m.columns);
  const int64_t position = first + d.offset(), end = position + queries;
  const int64_t begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
  for (int64_t k0 = begin; k0 < end; k0 += attention::kForwardKeys) {
    TileRows values[2];
    int64_t rows = 0, parts = 0;
    for (int64_t k1 = k0; k1 < std::min(end, k0 + attention::kForwardKeys); k1 += kTile) {
      const int64_t keys = std::min(kTile, end - k1), filled = (keys + 31) / 32 * 32;
      const TileRows x = attention_rows(k, d.k_begin + k1, keys, work + m.copy);
      attention_product(&x, 1, filled, lanes, work + m.columns, scores + rows * kTile, true);
      values[parts++] = {blocks[k1].across, kTile * 2, filled / 32};
      rows += filled;
    }
    if (!attention_plain(a.shape)) attention_make_scores(a.shape, rows, lanes, scores);
    const AttentionSight sight{{k0 - position, k0 - position + a.window() - 1}};
    const bool moved = softmax(sight, rows, lanes, scores, work + m.pairs);
    if (moved && k0 > begin)
      for (int64_t j = 0; j < a.padded_dim() * kTile; j += 16)
        store(o + j, mul(load(o + j), load(factor + j % kTile)));
    attention_product(values, parts, a.padded_dim(), lanes, work + m.pairs, o, k0 == begin);
  }
  for (int64_t i = 0; i < queries; ++i) {
    factor[i] = 1.f / softmax.total[i];
    if (a.lse_out != nullptr)
      a.lse_out[d.q_head * a.lse_stride + d.q_begin + first + i] =
          softmax.top[i] * softmax.factor * kLn2 + std::log(softmax.total[i]);
  }
  attention_turn(o, a.out, d.q_begin + first, queries, q.col, dim, factor, [](int64_t i) { return i; });
}

#include "kernels/attention/attention_bf16_backward.inl"
