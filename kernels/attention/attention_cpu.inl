// Attention on vectors, all in fp32. Scores have keys for rows and queries for lanes: a task keeps queries and
// goes through the keys, so that a vector's statistics are its lanes' own.
#include "kernels/attention/attention_tiles.inl"

// Below any score, and finite: a lane that has seen nothing yet must not make exp(inf - inf).
inline constexpr float kAttentionLeast = -3.4028235e38f;
inline constexpr float kAttentionLog2E = 1.44269504f;

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

// exp(score) = 2^(factor * x), x a tile's element: the product itself where the score is a positive multiple
// of it, or the score made of it.
struct AttentionPower {
  bool plain;
  float score;   // of x
  float factor;  // of x, in powers of two
  explicit AttentionPower(const AttentionShape& s)
      : plain(s.softcap <= 0 && s.scale > 0), score(plain ? s.scale : 1.f), factor(score * kAttentionLog2E) {}
};

inline void attention_make_scores(const AttentionShape& s, int64_t rows, int64_t lanes, float* x) {
  const AttentionScore score(s);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = r * attention::kTile; i < r * attention::kTile + lanes; i += kLanes)
      store(x + i, score.of(load(x + i)));
}

// The largest of kWide vectors of lanes over the rows of x that they see.
template <int kWide, bool kMasked>
inline void attention_most(const AttentionBand& band, int64_t rows, int64_t i, const float* x, Vec* most) {
  using attention::kTile;
  Vec odd[kWide];  // twice as many chains, which the adder's delay would hold up
  for (int w = 0; w < kWide; ++w) odd[w] = most[w];
  const auto look_at = [&](int64_t r, Vec* top) {
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) {
      const int64_t lane = i + w * kLanes;
      if (kMasked && band.misses(r, lane)) continue;
      const Vec v = load(x + r * kTile + lane);
      top[w] = max(top[w], kMasked ? band.keep(v, r, lane, set1(kAttentionLeast)) : v);
    }
  };
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    look_at(r, most);
    look_at(r + 1, odd);
  }
  if (r < rows) look_at(r, most);
  for (int w = 0; w < kWide; ++w) most[w] = max(most[w], odd[w]);
}

// One task's online softmax.
struct AttentionSoftmax {
  float factor;  // AttentionPower's
  float *top, *total, *rescale;

  void begin() const {
    for (int64_t i = 0; i < attention::kTile; ++i) {
      top[i] = kAttentionLeast;
      total[i] = 0;
    }
  }

  // x [keys, kTile] becomes 2^(factor (x - top)), 0 out of the band; top and total move on, `rescale` is what
  // earlier sums must be multiplied by.
  template <int kWide, bool kMasked>
  void lanes_from(const AttentionBand& band, int64_t keys, int64_t i, float* x) const {
    using attention::kTile;
    Vec most[kWide], shift[kWide], sum[kWide];
    for (int w = 0; w < kWide; ++w) most[w] = load(top + i + w * kLanes);
    attention_most<kWide, kMasked>(band, keys, i, x, most);
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) {
      const int64_t lane = i + w * kLanes;
      const Vec keep = exp2(mul(sub(load(top + lane), most[w]), set1(factor)));
      sum[w] = mul(load(total + lane), keep);
      shift[w] = mul(most[w], set1(-factor));
      store(top + lane, most[w]);
      store(rescale + lane, keep);
    }
    for (int64_t r = 0; r < keys; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) {
        const int64_t lane = i + w * kLanes;
        float* at = x + r * kTile + lane;
        Vec p = zero();
        if (!kMasked || !band.misses(r, lane)) p = exp2(fma(load(at), set1(factor), shift[w]));
        if (kMasked) p = band.keep(p, r, lane, zero());
        store(at, p);
        sum[w] = add(sum[w], p);
      }
    for (int w = 0; w < kWide; ++w) store(total + i + w * kLanes, sum[w]);
  }

  template <bool kMasked>
  void tile(const AttentionBand& band, int64_t keys, int64_t lanes, float* x) const {
    constexpr int kWide = kLanes == 16 ? 2 : 4;
    int64_t i = 0;
    for (; i + kWide * kLanes <= lanes; i += kWide * kLanes) lanes_from<kWide, kMasked>(band, keys, i, x);
    for (; i < lanes; i += kLanes) lanes_from<1, kMasked>(band, keys, i, x);
  }
  void operator()(const AttentionBand& band, int64_t keys, int64_t lanes, float* x) const {
    if (band.cuts(keys, lanes))
      tile<true>(band, keys, lanes, x);
    else
      tile<false>(band, keys, lanes, x);
  }
};

// Queries [first, first + kTile) of one document, the query heads of one key head.
template <class T>
struct AttentionForward {
  const attention::Args& a;
  const attention::Rows& d;
  const attention::VectorForward m;
  char* const work;
  const int64_t first, queries, lanes, dim, padded, position;
  const AttentionPower power;

  AttentionForward(const attention::Args& a, const attention::Rows& d, int64_t first, char* work)
      : a(a),
        d(d),
        m(a),
        work(work),
        first(first),
        queries(std::min(attention::kTile, d.q_count - first)),
        lanes(attention_lanes(queries)),
        dim(a.dim()),
        padded(a.padded_dim()),
        position(first + d.offset()),
        power(a.shape) {}

  float* floats(int64_t at) const { return reinterpret_cast<float*>(work + at); }
  float* of_head(int64_t h, int64_t at) const { return floats(m.heads + h * m.head_bytes + at); }
  AttentionSoftmax softmax(int64_t h) const {
    return {power.factor, of_head(h, m.top), of_head(h, m.total), floats(m.factor)};
  }

  // What `heads` of them from `head` on make of the keys [k0, k0 + keys).
  void keys_of(int64_t heads, int64_t k0, int64_t keys, bool start) const {
    const AttentionBand band{k0 - position, k0 - position + a.window() - 1};
    float* const x = floats(m.scores);
    attention_pack<T>(a.k, d.k_begin + k0, keys, d.k_head * dim, dim, padded, floats(m.k));
    attention_pack<T>(a.v, d.k_begin + k0, keys, d.k_head * dim, dim, padded, floats(m.v));
    for (int64_t h = 0; h < heads; ++h) {
      attention_scores(band, keys, lanes, dim, floats(m.k), padded, of_head(h, m.q), x);
      if (!power.plain) attention_make_scores(a.shape, keys, lanes, x);
      softmax(h)(band, keys, lanes, x);
      const auto sum = [&]<Sum kSum>() {
        attention_accumulate<true, kSum>(band, queries, attention_lanes(dim), keys, x, floats(m.v),
                                         of_head(h, m.sums), padded, floats(m.factor));
      };
      if (start)
        sum.template operator()<Sum::assign>();
      else
        sum.template operator()<Sum::scale_and_add>();
    }
  }

  void run(int64_t head, int64_t heads) const {
    using attention::kTile;
    for (int64_t h = 0; h < heads; ++h) {
      attention_pack_across<T>(a.q, d.q_begin + first, queries, (head + h) * dim, dim, of_head(h, m.q));
      softmax(h).begin();
    }
    const int64_t begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
    for (int64_t k0 = begin, end = position + queries; k0 < end; k0 += kTile)
      keys_of(heads, k0, std::min(kTile, end - k0), k0 == begin);
    for (int64_t h = 0; h < heads; ++h) {
      const float *top = of_head(h, m.top), *total = of_head(h, m.total);
      for (int64_t i = 0; i < queries; ++i) {
        attention_unpack<T>(of_head(h, m.sums) + i * padded, padded, a.out, d.q_begin + first + i, 1,
                            (head + h) * dim, dim, 1.f / total[i]);
        if (a.lse_out != nullptr)
          a.lse_out[(head + h) * a.lse_stride + d.q_begin + first + i] =
              top[i] * power.score + std::log(total[i]);
      }
    }
  }
};

template <class T>
inline void attention_forward_group(const attention::Args& a, const attention::Rows& d, int64_t first,
                                    char* work) {
  const AttentionForward<T> t(a, d, first, work);
  const int64_t step = attention::vector_heads(a);
  for (int64_t h = 0; h < a.group(); h += step)
    t.run(d.k_head * a.group() + h, std::min(step, a.group() - h));
}

inline void attention_forward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   char* work) {
  if (a.q.dtype == DType::bf16)
    attention_forward_group<bf16>(a, d, first, work);
  else
    attention_forward_group<float>(a, d, first, work);
}

#include "kernels/attention/attention_backward_cpu.inl"
