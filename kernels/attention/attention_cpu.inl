#include "kernels/attention/attention_tiles.inl"

// Below any score, and finite: a lane that has seen nothing yet must not make exp(inf - inf).
inline constexpr float kAttentionLeast = -3.4028235e38f;

// Scores of a tile: capped where the shape says so.
struct AttentionScore {
  Vec scale, cap, per_cap;
  bool capped;
  explicit AttentionScore(const AttentionShape& s)
      : scale(set1(s.scale)),
        cap(set1(s.softcap)),
        per_cap(set1(s.softcap > 0 ? 1.f / s.softcap : 0.f)),
        capped(s.softcap > 0) {}
  Vec of(Vec dot) const {
    const Vec x = mul(dot, scale);
    return capped ? mul(cap, tanh(mul(x, per_cap))) : x;
  }
  // d score / d (scaled dot)
  Vec slope(Vec g, Vec score) const {
    if (!capped) return g;
    const Vec t = mul(score, per_cap);
    return mul(g, sub(set1(1.f), mul(t, t)));
  }
};

// Online softmax over the rows (keys) of s [keys, kTile queries], a lane a query: s becomes exp(score - max),
// 0 out of the band; `top` and `total` move on, `factor` is what earlier sums must be multiplied by.
inline void attention_softmax(const AttentionScore& score, const AttentionBand& band, int64_t keys,
                              int64_t queries, float* s, float* top, float* total, float* factor) {
  using attention::kTile;
  const bool masked = band.cuts(keys, queries);
  const Vec least = set1(kAttentionLeast);
  for (int64_t i = 0; i < queries; i += kLanes) {
    const Vec old = load(top + i);
    Vec most = old;
    for (int64_t r = 0; r < keys; ++r) {
      if (masked && band.misses(r, i)) continue;
      Vec x = score.of(load(s + r * kTile + i));
      if (masked) x = band.keep(x, r, i, least);
      store(s + r * kTile + i, x);
      most = max(most, x);
    }
    const Vec keep = exp(sub(old, most));
    Vec sum = mul(load(total + i), keep);
    for (int64_t r = 0; r < keys; ++r) {
      Vec p = zero();
      if (!masked || !band.misses(r, i)) p = exp(sub(load(s + r * kTile + i), most));
      if (masked) p = band.keep(p, r, i, zero());
      store(s + r * kTile + i, p);
      sum = add(sum, p);
    }
    store(top + i, most);
    store(total + i, sum);
    store(factor + i, keep);
  }
}

// Of one vector of a backward tile: p = exp(score - lse) and ds, the gradient to the scaled products.
struct AttentionSlope {
  Vec p, ds;
};
inline AttentionSlope attention_slope(const AttentionScore& score, Vec product, Vec lse, Vec dp, Vec delta) {
  const Vec x = score.of(product);
  const Vec p = exp(sub(x, lse));
  return {p, score.slope(mul(p, sub(dp, delta)), x)};
}

// Queries [first, first + kTile) of one document and head.
template <class T>
inline void attention_forward_block(const attention::Args& a, const attention::Rows& d, int64_t first,
                                    float* work) {
  using attention::kTile;
  const int64_t dim = a.dim(), padded = a.padded_dim(), queries = std::min(kTile, d.q_count - first);
  float *qt = work, *k = qt + kTile * padded, *v = k + kTile * padded, *o = v + kTile * padded;
  float *s = o + kTile * padded, *top = s + kTile * kTile, *total = top + kTile, *factor = total + kTile;
  const AttentionScore score(a.shape);
  for (int64_t i = 0; i < kTile; ++i) {
    top[i] = kAttentionLeast;
    total[i] = 0;
  }
  for (int64_t i = 0; i < kTile * padded; ++i) o[i] = 0;
  attention_pack_across<T>(a.q, d.q_begin + first, queries, d.q_head * dim, dim, qt);
  const int64_t position = first + d.offset(), end = position + queries, lanes = attention_lanes(queries);
  const int64_t begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    const int64_t keys = std::min(kTile, end - k0);
    attention_pack<T>(a.k, d.k_begin + k0, keys, d.k_head * dim, dim, padded, k);
    attention_pack<T>(a.v, d.k_begin + k0, keys, d.k_head * dim, dim, padded, v);
    const AttentionBand band{k0 - position, k0 - position + a.window() - 1};
    attention_scores(band, keys, lanes, dim, k, padded, qt, s);
    attention_softmax(score, band, keys, lanes, s, top, total, factor);
    attention_accumulate<Sum::scale_and_add>(band, queries, attention_lanes(dim), keys, s, v, o, padded,
                                             factor);
  }
  for (int64_t i = 0; i < queries; ++i) {
    attention_unpack<T>(o + i * padded, padded, a.out, d.q_begin + first + i, 1, d.q_head * dim, dim,
                        1.f / total[i]);
    if (a.lse_out != nullptr)
      a.lse_out[d.q_head * a.lse_stride + d.q_begin + first + i] = top[i] + std::log(total[i]);
  }
}

inline void attention_forward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   float* work) {
  if (a.q.dtype == DType::bf16)
    attention_forward_block<bf16>(a, d, first, work);
  else
    attention_forward_block<float>(a, d, first, work);
}

// delta[head, row] = sum of d_o * o over the head's columns.
template <class T>
inline void attention_delta_row(const attention::Args& a, int64_t row) {
  for (int h = 0; h < a.shape.q_heads; ++h) {
    const T* o = a.o.row<T>(row) + h * a.dim();
    const T* d_o = a.d_o.row<T>(row) + h * a.dim();
    Vec s = zero();
    int64_t j = 0;
    for (; j + kLanes <= a.dim(); j += kLanes) s = fma(load(o + j), load(d_o + j), s);
    if (j < a.dim()) s = fma(load_part(o + j, a.dim() - j), load_part(d_o + j, a.dim() - j), s);
    a.delta[h * a.q.rows + row] = sum(s);
  }
}

inline void attention_delta_rows(const attention::Args& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (a.q.dtype == DType::bf16)
      attention_delta_row<bf16>(a, i);
    else
      attention_delta_row<float>(a, i);
  }
}

// Tiles of products (in p) and of dp (in ds) become p and ds, 0 out of the band. A row a query.
inline void attention_slopes_by_query(const AttentionScore& score, const AttentionBand& band, int64_t queries,
                                      int64_t lanes, const float* lse, const float* delta, float* p,
                                      float* ds) {
  using attention::kTile;
  const bool masked = band.cuts(queries, lanes);
  for (int64_t r = 0; r < queries; ++r)
    for (int64_t i = 0; i < lanes; i += kLanes) {
      float *p_at = p + r * kTile + i, *ds_at = ds + r * kTile + i;
      AttentionSlope t{zero(), zero()};
      if (!masked || !band.misses(r, i))
        t = attention_slope(score, load(p_at), set1(lse[r]), load(ds_at), set1(delta[r]));
      store(p_at, masked ? band.keep(t.p, r, i, zero()) : t.p);
      store(ds_at, masked ? band.keep(t.ds, r, i, zero()) : t.ds);
    }
}

// The same where a row is a key and lanes are queries; p itself is not wanted.
inline void attention_slopes_by_key(const AttentionScore& score, const AttentionBand& band, int64_t keys,
                                    int64_t lanes, const float* lse, const float* delta, const float* p,
                                    float* ds) {
  using attention::kTile;
  const bool masked = band.cuts(keys, lanes);
  for (int64_t r = 0; r < keys; ++r)
    for (int64_t i = 0; i < lanes; i += kLanes) {
      float* ds_at = ds + r * kTile + i;
      AttentionSlope t{zero(), zero()};
      if (!masked || !band.misses(r, i))
        t = attention_slope(score, load(p + r * kTile + i), load(lse + i), load(ds_at), load(delta + i));
      store(ds_at, masked ? band.keep(t.ds, r, i, zero()) : t.ds);
    }
}

// Keys [first, first + kTile) of one document and key head: dK and dV, over the group's query heads in order
// and their queries in order. Lanes run over keys: s [queries, kTile keys].
template <class T>
inline void attention_backward_keys(const attention::Args& a, const attention::Rows& d, int64_t first,
                                    float* work) {
  using attention::kTile;
  const int64_t dim = a.dim(), padded = a.padded_dim(), keys = std::min(kTile, d.k_count - first);
  float *kt = work, *vt = kt + kTile * padded, *q = vt + kTile * padded, *d_o = q + kTile * padded;
  float *dk = d_o + kTile * padded, *dv = dk + kTile * padded;
  float *p = dv + kTile * padded, *ds = p + kTile * kTile;
  const AttentionScore score(a.shape);
  for (int64_t i = 0; i < kTile * padded; ++i) dk[i] = dv[i] = 0;
  attention_pack_across<T>(a.k, d.k_begin + first, keys, d.k_head * dim, dim, kt);
  attention_pack_across<T>(a.v, d.k_begin + first, keys, d.k_head * dim, dim, vt);
  const int64_t lanes = attention_lanes(keys), offset = d.offset(), window = a.window();
  const int64_t begin = std::max<int64_t>(0, first - offset);
  const int64_t end = std::min(d.q_count, first + keys - 1 + window - offset);
  for (int64_t h = d.k_head * a.group(); h < (d.k_head + 1) * a.group(); ++h) {
    const float* lse = a.lse + h * a.lse_stride + d.q_begin;
    const float* delta = a.delta + h * a.q.rows + d.q_begin;
    for (int64_t q0 = begin; q0 < end; q0 += kTile) {
      const int64_t queries = std::min(kTile, end - q0);
      attention_pack<T>(a.q, d.q_begin + q0, queries, h * dim, dim, padded, q);
      attention_pack<T>(a.d_o, d.q_begin + q0, queries, h * dim, dim, padded, d_o);
      const int64_t position = q0 + offset - first;  // of the tile's first query, in keys of the tile
      const AttentionBand band{position - window + 1, position};
      attention_scores(band, queries, lanes, dim, q, padded, kt, p);
      attention_scores(band, queries, lanes, dim, d_o, padded, vt, ds);
      attention_slopes_by_query(score, band, queries, lanes, lse + q0, delta + q0, p, ds);
      attention_accumulate<Sum::add>(band, keys, attention_lanes(dim), queries, p, d_o, dv, padded);
      attention_accumulate<Sum::add>(band, keys, attention_lanes(dim), queries, ds, q, dk, padded);
    }
  }
  attention_unpack<T>(dk, padded, a.d_k, d.k_begin + first, keys, d.k_head * dim, dim, a.shape.scale);
  attention_unpack<T>(dv, padded, a.d_v, d.k_begin + first, keys, d.k_head * dim, dim, 1.f);
}

inline void attention_backward_keys_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                         float* work) {
  if (a.q.dtype == DType::bf16)
    attention_backward_keys<bf16>(a, d, first, work);
  else
    attention_backward_keys<float>(a, d, first, work);
}

// Queries [first, first + kTile) of one document and head: dQ. Lanes run over queries: s [keys, kTile].
template <class T>
inline void attention_backward_queries(const attention::Args& a, const attention::Rows& d, int64_t first,
                                       float* work) {
  using attention::kTile;
  const int64_t dim = a.dim(), padded = a.padded_dim(), queries = std::min(kTile, d.q_count - first);
  float *qt = work, *dot = qt + kTile * padded, *k = dot + kTile * padded, *v = k + kTile * padded;
  float *dq = v + kTile * padded, *p = dq + kTile * padded, *ds = p + kTile * kTile;
  float *lse = ds + kTile * kTile, *delta = lse + kTile;
  const AttentionScore score(a.shape);
  for (int64_t i = 0; i < kTile * padded; ++i) dq[i] = 0;
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t row = d.q_begin + first + i;
    lse[i] = i < queries ? a.lse[d.q_head * a.lse_stride + row] : 0;
    delta[i] = i < queries ? a.delta[d.q_head * a.q.rows + row] : 0;
  }
  attention_pack_across<T>(a.q, d.q_begin + first, queries, d.q_head * dim, dim, qt);
  attention_pack_across<T>(a.d_o, d.q_begin + first, queries, d.q_head * dim, dim, dot);
  const int64_t position = first + d.offset(), end = position + queries, lanes = attention_lanes(queries);
  const int64_t window = a.window(), begin = std::max<int64_t>(0, position - window + 1) / kTile * kTile;
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    const int64_t keys = std::min(kTile, end - k0);
    attention_pack<T>(a.k, d.k_begin + k0, keys, d.k_head * dim, dim, padded, k);
    attention_pack<T>(a.v, d.k_begin + k0, keys, d.k_head * dim, dim, padded, v);
    const AttentionBand band{k0 - position, k0 - position + window - 1};
    attention_scores(band, keys, lanes, dim, k, padded, qt, p);
    attention_scores(band, keys, lanes, dim, v, padded, dot, ds);
    attention_slopes_by_key(score, band, keys, lanes, lse, delta, p, ds);
    attention_accumulate<Sum::add>(band, queries, attention_lanes(dim), keys, ds, k, dq, padded);
  }
  attention_unpack<T>(dq, padded, a.d_q, d.q_begin + first, queries, d.q_head * dim, dim, a.shape.scale);
}

inline void attention_backward_queries_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                            float* work) {
  if (a.q.dtype == DType::bf16)
    attention_backward_queries<bf16>(a, d, first, work);
  else
    attention_backward_queries<float>(a, d, first, work);
}
