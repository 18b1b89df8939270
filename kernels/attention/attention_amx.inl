// Attention of bf16 operands on tiles, AMX's or of vdpbf16ps: the same blocks, bands and softmax as
// attention_cpu.inl; the products that take p and ds take them rounded to bf16, as FlashAttention has it.
// Scores have lanes for the side that a task keeps; its sums are kept transposed, so that scores go into the
// next product as they lie, and are turned once at the end.

using attention::kTile;

// One worker's memory, see attention::amx_workspace.
struct AttentionMemory {
  int64_t steps, padded;
  char *columns[2], *transposed[2], *copy, *pairs;
  float *scores[2], *sums[2], *stats[3];

  AttentionMemory(const attention::Args& a, float* work) : steps(steps_of(a.dim())), padded(a.padded_dim()) {
    char* at = reinterpret_cast<char*>(work);
    const auto take = [&](int64_t bytes) { return std::exchange(at, at + bytes); };
    copy = take(kTile * (steps | 1) * 64);
    pairs = take(2 * 2 * kStepBytes);
    for (int i = 0; i < 2; ++i) {
      columns[i] = take(2 * steps * kStepBytes);
      transposed[i] = take(padded * kTransposedStride);
      scores[i] = reinterpret_cast<float*>(take(kTile * kTile * 4));
      sums[i] = reinterpret_cast<float*>(take(padded * kTile * 4));
      for (int64_t j = 0; j < padded * kTile; ++j) sums[i][j] = 0;
    }
    for (float*& s : stats) s = reinterpret_cast<float*>(take(kTile * 4));
  }
  static constexpr int64_t kTransposedStride = 3 * 64;  // two steps, off a power of two
};

// One head's columns of rows of m.
struct AttentionHead {
  const ConstMat& m;
  int64_t col, dim;
};

// c[rows, kTile] (+)= x b.
inline void attention_product(const TileRows& x, int64_t rows, const char* b, float* c, bool first) {
  for (int64_t r = 0; r < rows; r += 32) {
    const TileRows part{x.data + r * x.stride, x.stride, x.steps};
    for (int64_t j = 0; j < kTile; j += 32)
      multiply(&part, 1, b + j / 32 * x.steps * kStepBytes, rows - r, 32, c + r * kTile + j, kTile, first);
  }
}

// A left operand, terms along the head: the rows themselves, or where tiles would reach past them a copy
// filled up with zeros.
inline TileRows attention_rows(const AttentionHead& h, int64_t row, int64_t rows, char* copy) {
  const int64_t steps = steps_of(h.dim);
  if (rows % kTileSide == 0 && h.dim % kStepTerms == 0)
    return {reinterpret_cast<const char*>(h.m.row<bf16>(row) + h.col), h.m.stride * 2, steps};
  const TileRows x{copy, (steps | 1) * 64, steps};
  const size_t bytes = static_cast<size_t>(steps * 64), filled = static_cast<size_t>(h.dim) * 2;
  for (int64_t r = 0; r < (rows + kTileSide - 1) / kTileSide * kTileSide; ++r, copy += x.stride) {
    if (r < rows) std::memcpy(copy, h.m.row<bf16>(row + r) + h.col, filled);
    std::memset(r < rows ? copy + filled : copy, 0, r < rows ? bytes - filled : bytes);
  }
  return x;
}

// A left operand, terms along the rows: [head, rows].
inline TileRows attention_transposed(const AttentionHead& h, int64_t row, int64_t rows, char* to) {
  constexpr int64_t kStride = AttentionMemory::kTransposedStride;
  for (int64_t c = 0; c < h.dim; c += kTileSide)
    pack_transposed(h.m, row, rows, h.col + c, at_most(h.dim - c, kTileSide), to + c * kStride, kStride);
  return {to, kStride, steps_of(rows)};
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

// A right operand: scores [rows, kTile] as bf16, terms along the rows, zeros behind them.
inline void attention_pairs(const float* scores, int64_t rows, char* to) {
  const int64_t steps = steps_of(rows);
  const auto part = [&](int64_t r, int64_t j) {
    return r < rows ? _mm512_load_ps(scores + r * kTile + j) : _mm512_setzero_ps();
  };
  for (int64_t r = 0; r < steps * kStepTerms; r += 2)
    for (int64_t j = 0; j < kTile; j += 32) {
      const __m512i even = (__m512i)_mm512_cvtne2ps_pbh(part(r, j + 16), part(r, j));
      const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh(part(r + 1, j + 16), part(r + 1, j));
      interleave(even, odd, to + (j / 32 * steps + r / kStepTerms) * kStepBytes + r % kStepTerms / 2 * 64);
    }
}

// The columns of sums [head, kTile] become rows of one head, each times its factor.
inline void attention_turn(const float* sums, const Mat& m, int64_t row, int64_t rows, int64_t col,
                           int64_t dim, const float* factor) {
  for (int64_t g = 0; g < rows; g += kTileSide)
    for (int64_t c = 0; c < dim; c += kTileSide) {
      Vec v[kTileSide];
      for (int r = 0; r < kTileSide; ++r) v[r] = load(sums + (c + r) * kTile + g);
      avx512::transpose(v);
      for (int64_t r = 0; r < at_most(rows - g, kTileSide); ++r)
        avx512::store_part(m.row<bf16>(row + g + r) + col + c, mul(v[r], set1(factor[g + r])), dim - c);
    }
}

// Queries [first, first + kTile) of one document and head. Lanes run over queries.
inline void attention_forward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   float* work) {
  const TileRegisters registers;
  const AttentionMemory m(a, work);
  const int64_t dim = a.dim(), queries = std::min(kTile, d.q_count - first);
  const AttentionHead q{a.q, d.q_head * dim, dim}, k{a.k, d.k_head * dim, dim}, v{a.v, d.k_head * dim, dim};
  float *top = m.stats[0], *total = m.stats[1], *factor = m.stats[2], *o = m.sums[0];
  const avx512::AttentionScore score(a.shape);
  for (int64_t i = 0; i < kTile; ++i) {
    top[i] = avx512::kAttentionLeast;
    total[i] = factor[i] = 0;
  }
  attention_columns_of(q, d.q_begin + first, queries, m.columns[0]);
  const int64_t position = first + d.offset(), end = position + queries;
  const int64_t begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    const int64_t keys = std::min(kTile, end - k0), row = d.k_begin + k0;
    attention_product(attention_rows(k, row, keys, m.copy), keys, m.columns[0], m.scores[0], true);
    const avx512::AttentionBand band{k0 - position, k0 - position + a.window() - 1};
    avx512::attention_softmax(score, band, keys, avx512::attention_lanes(queries), m.scores[0], top, total,
                              factor);
    if (k0 > begin)
      for (int64_t j = 0; j < m.padded * kTile; j += 16)
        store(o + j, mul(load(o + j), load(factor + j % kTile)));
    attention_pairs(m.scores[0], keys, m.pairs);
    attention_product(attention_transposed(v, row, keys, m.transposed[0]), m.padded, m.pairs, o, false);
  }
  for (int64_t i = 0; i < queries; ++i) {
    factor[i] = 1.f / total[i];
    if (a.lse_out != nullptr)
      a.lse_out[d.q_head * a.lse_stride + d.q_begin + first + i] = top[i] + std::log(total[i]);
  }
  attention_turn(o, a.out, d.q_begin + first, queries, q.col, dim, factor);
}

// Keys [first, first + kTile) of one document and key head: dK and dV, over the group's query heads in order
// and their queries in order. Lanes run over keys.
inline void attention_backward_keys_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                         float* work) {
  const TileRegisters registers;
  const AttentionMemory m(a, work);
  const int64_t dim = a.dim(), keys = std::min(kTile, d.k_count - first), col = d.k_head * dim;
  const avx512::AttentionScore score(a.shape);
  attention_columns_of({a.k, col, dim}, d.k_begin + first, keys, m.columns[0]);
  attention_columns_of({a.v, col, dim}, d.k_begin + first, keys, m.columns[1]);
  const int64_t offset = d.offset(), window = a.window(), begin = std::max<int64_t>(0, first - offset);
  const int64_t end = std::min(d.q_count, first + keys - 1 + window - offset);
  for (int64_t h = d.k_head * a.group(); h < (d.k_head + 1) * a.group(); ++h) {
    const AttentionHead q{a.q, h * dim, dim}, d_o{a.d_o, h * dim, dim};
    for (int64_t q0 = begin; q0 < end; q0 += kTile) {
      const int64_t queries = std::min(kTile, end - q0), row = d.q_begin + q0;
      float *p = m.scores[0], *ds = m.scores[1];
      attention_product(attention_rows(q, row, queries, m.copy), queries, m.columns[0], p, true);
      attention_product(attention_rows(d_o, row, queries, m.copy), queries, m.columns[1], ds, true);
      const int64_t position = q0 + offset - first;  // of the tile's first query, in keys of the tile
      avx512::attention_slopes_by_query(score, {position - window + 1, position}, queries,
                                        avx512::attention_lanes(keys), a.lse + h * a.lse_stride + row,
                                        a.delta + h * a.q.rows + row, p, ds);
      attention_pairs(p, queries, m.pairs);
      attention_product(attention_transposed(d_o, row, queries, m.transposed[0]), m.padded, m.pairs,
                        m.sums[1], false);
      attention_pairs(ds, queries, m.pairs);
      attention_product(attention_transposed(q, row, queries, m.transposed[1]), m.padded, m.pairs, m.sums[0],
                        false);
    }
  }
  float *scale = m.stats[0], *one = m.stats[1];
  for (int64_t i = 0; i < kTile; ++i) scale[i] = a.shape.scale, one[i] = 1;
  attention_turn(m.sums[0], a.d_k, d.k_begin + first, keys, col, dim, scale);
  attention_turn(m.sums[1], a.d_v, d.k_begin + first, keys, col, dim, one);
}

// Queries [first, first + kTile) of one document and head: dQ. Lanes run over queries.
inline void attention_backward_queries_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                            float* work) {
  const TileRegisters registers;
  const AttentionMemory m(a, work);
  const int64_t dim = a.dim(), queries = std::min(kTile, d.q_count - first), col = d.q_head * dim;
  const AttentionHead k{a.k, d.k_head * dim, dim}, v{a.v, d.k_head * dim, dim};
  const avx512::AttentionScore score(a.shape);
  float *lse = m.stats[0], *delta = m.stats[1], *scale = m.stats[2];
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t row = d.q_begin + first + i;
    lse[i] = i < queries ? a.lse[d.q_head * a.lse_stride + row] : 0;
    delta[i] = i < queries ? a.delta[d.q_head * a.q.rows + row] : 0;
    scale[i] = a.shape.scale;
  }
  attention_columns_of({a.q, col, dim}, d.q_begin + first, queries, m.columns[0]);
  attention_columns_of({a.d_o, col, dim}, d.q_begin + first, queries, m.columns[1]);
  const int64_t position = first + d.offset(), end = position + queries, window = a.window();
  const int64_t begin = std::max<int64_t>(0, position - window + 1) / kTile * kTile;
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    const int64_t keys = std::min(kTile, end - k0), row = d.k_begin + k0;
    float *p = m.scores[0], *ds = m.scores[1];
    attention_product(attention_rows(k, row, keys, m.copy), keys, m.columns[0], p, true);
    attention_product(attention_rows(v, row, keys, m.copy), keys, m.columns[1], ds, true);
    avx512::attention_slopes_by_key(score, {k0 - position, k0 - position + window - 1}, keys,
                                    avx512::attention_lanes(queries), lse, delta, p, ds);
    attention_pairs(ds, keys, m.pairs);
    attention_product(attention_transposed(k, row, keys, m.transposed[0]), m.padded, m.pairs, m.sums[0],
                      false);
  }
  attention_turn(m.sums[0], a.d_q, d.q_begin + first, queries, col, dim, scale);
}
