// The backward pass on tiles, in one go through the keys: p and ds serve dQ, dK and dV. A task keeps the
// queries of a block and the heads of one group, and adds to the sums of the key blocks that it sees. Those
// take turns: the last block of queries comes first, so the order of a sum's terms is that of the tasks.

// Which lane a query's dQ comes out at: what interleaving by unpacking does to 32 columns.
inline int64_t attention_unpacked(int64_t i) { return i / 32 * 32 + i % 8 / 4 * 16 + i % 32 / 8 * 4 + i % 4; }

// A right operand: `filled` rows (zeros behind `rows`) of one head, terms along the rows, each panel of 32
// columns `stride` bytes after the one before.
inline void attention_pairs_of(const AttentionHead& h, int64_t row, int64_t rows, int64_t filled, char* to,
                               int64_t stride) {
  for (int64_t c = 0; c < h.dim; c += 32, to += stride) {
    const __mmask32 mask = h.dim - c >= 32 ? ~0u : (1u << (h.dim - c)) - 1;
    const auto part = [&](int64_t r) {
      return r < rows ? _mm512_maskz_loadu_epi16(mask, h.m.row<bf16>(row + r) + h.col + c)
                      : _mm512_setzero_si512();
    };
    for (int64_t r = 0; r < filled; r += 2)
      interleave(part(r), part(r + 1), to + r / 32 * kStepBytes + r % 32 / 2 * 64);
  }
}

// One block of 32 keys and 32 queries: where its products lie and where p and ds go, as rows, ds as pairs
// too.
struct AttentionBlock {
  AttentionSight sight;
  int64_t r, i;  // its first key and query
  float factor, per_cap;
  const float *lse, *delta, *scores, *slopes;  // scores and slopes [32, 32]
  char *p, *ds, *pairs;
  int64_t stride;
};

// p = 2^(score * factor + shift), ds = p (dp - delta), 0 where nothing is seen.
template <bool kAll, bool kCapped>
inline void attention_slopes(const AttentionBlock& b) {
  __m512 shift[2], mean[2];
  for (int h = 0; h < 2; ++h) {
    shift[h] = _mm512_load_ps(b.lse + 16 * h);
    mean[h] = _mm512_load_ps(b.delta + 16 * h);
  }
  for (int64_t r = 0; r < 32; r += 2) {
    __m512i both[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      __m512 p[2], ds[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const int64_t at = (r + k) * 32 + 16 * h;
        const __m512 score = _mm512_load_ps(b.scores + at);
        p[h] = attention_exp2(_mm512_fmadd_ps(score, _mm512_set1_ps(b.factor), shift[h]));
        ds[h] = _mm512_mul_ps(p[h], _mm512_sub_ps(_mm512_load_ps(b.slopes + at), mean[h]));
        if constexpr (kCapped) {
          const __m512 t = _mm512_mul_ps(score, _mm512_set1_ps(b.per_cap));
          ds[h] = _mm512_mul_ps(ds[h], _mm512_fnmadd_ps(t, t, _mm512_set1_ps(1)));
        }
        if constexpr (!kAll) {
          const __mmask16 seen = b.sight.lanes(b.r + r + k, b.i + 16 * h);
          p[h] = _mm512_maskz_mov_ps(seen, p[h]);
          ds[h] = _mm512_maskz_mov_ps(seen, ds[h]);
        }
      }
      _mm512_store_si512(b.p + (r + k) * b.stride, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
      both[k] = (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0]);
      _mm512_store_si512(b.ds + (r + k) * b.stride, both[k]);
    }
    _mm512_store_si512(b.pairs + r / 2 * 64, _mm512_unpacklo_epi16(both[0], both[1]));
    _mm512_store_si512(b.pairs + 1024 + r / 2 * 64, _mm512_unpackhi_epi16(both[0], both[1]));
  }
}

inline void attention_no_slopes(const AttentionBlock& b) {
  for (int64_t r = 0; r < 32; ++r) {
    _mm512_store_si512(b.p + r * b.stride, _mm512_setzero_si512());
    _mm512_store_si512(b.ds + r * b.stride, _mm512_setzero_si512());
  }
  std::memset(b.pairs, 0, kStepBytes);
}

inline void attention_prepare_keys(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   char* work) {
  const KeyBlock b = attention_keys(a, d, true, work + BackwardMemory(a).own)[first];
  attention_across({a.k, d.k_head * a.dim(), a.dim()}, d.k_begin + first, at_most(d.k_count - first, kTile),
                   b.across);
  *b.turn = 0;
}

// Keys [first, first + kTile): the sums become dK and dV; no query sees keys that nothing was added to.
inline void attention_finish_keys(const attention::Args& a, const attention::Rows& d, int64_t first,
                                  char* work) {
  const KeyBlock b = attention_keys(a, d, true, work + BackwardMemory(a).own)[first];
  const int64_t dim = a.dim(), padded = a.padded_dim(), keys = std::min(kTile, d.k_count - first);
  const bool unseen = d.q_count == 0 || *b.turn == 0;
  const auto take = [&](const float* sums, const Mat& m, float factor) {
    for (int64_t i = 0; i < keys; ++i)
      for (int64_t c = 0; c < dim; c += 16)
        avx512::store_part(m.row<bf16>(d.k_begin + first + i) + d.k_head * dim + c,
                           unseen ? set1(0) : mul(load(sums + i * padded + c), set1(factor)), dim - c);
  };
  take(b.dk, a.d_k, a.shape.scale);
  take(b.dv, a.d_v, 1);
}

// One task's queries and up to kHeadsAtOnce heads of its group.
struct AttentionBackward {
  const attention::Args& a;
  const attention::Rows& d;
  const BackwardMemory m;
  char* const work;
  const int64_t first, queries, lanes, dim, padded, position, end;
  const DocumentKeys blocks;
  const bool plain;
  int64_t head = 0, heads = 0, steps = 0;  // of those at hand; steps of all their queries

  AttentionBackward(const attention::Args& a, const attention::Rows& d, int64_t first, char* work)
      : a(a),
        d(d),
        m(a),
        work(work),
        first(first),
        queries(std::min(kTile, d.q_count - first)),
        lanes((queries + 31) / 32 * 32),
        dim(a.dim()),
        padded(a.padded_dim()),
        position(first + d.offset()),
        end(position + queries),
        blocks(attention_keys(a, d, true, work + m.own)),
        plain(attention_plain(a.shape)) {}

  char* of_head(int64_t h, int64_t at) const { return work + m.heads + h * m.head_bytes + at; }
  static float* floats(char* p) { return reinterpret_cast<float*>(p); }

  // Packs what stays; delta = rowsum(d_o * o).
  void begin(int64_t from, int64_t count) {
    head = from;
    heads = count;
    steps = heads * (lanes / 32);
    const int64_t row = d.q_begin + first;
    for (int64_t h = 0; h < heads; ++h) {
      const AttentionHead q{a.q, (head + h) * dim, dim}, d_o{a.d_o, q.col, dim};
      attention_columns_of(q, row, queries, of_head(h, m.q_columns));
      attention_columns_of(d_o, row, queries, of_head(h, m.d_o_columns));
      const int64_t at = h * (lanes / 32) * kStepBytes;
      attention_pairs_of(q, row, queries, lanes, work + m.q_pairs + at, steps * kStepBytes);
      attention_pairs_of(d_o, row, queries, lanes, work + m.d_o_pairs + at, steps * kStepBytes);
      float *lse = floats(of_head(h, m.lse)), *delta = floats(of_head(h, m.delta));
      for (int64_t i = 0; i < kTile; ++i) {
        lse[i] = delta[i] = 0;
        if (i >= queries) continue;
        lse[i] = -kLog2E * a.lse[(head + h) * a.lse_stride + row + i];
        Vec sum = set1(0);
        for (int64_t c = 0; c < dim; c += 16)
          sum = avx512::fma(avx512::load_part(a.o.row<bf16>(row + i) + q.col + c, dim - c),
                            avx512::load_part(a.d_o.row<bf16>(row + i) + q.col + c, dim - c), sum);
        delta[i] = avx512::sum(sum);
      }
    }
  }

  // Of the block of keys at hand.
  struct Keys {
    int64_t first, rows;  // rows: whole 32s
    TileRows k, v;
    AttentionSight sight;
    bool start;
  };

  // Block n of the heads' blocks of 32 x 32, those of one head and 32 queries one after the other.
  AttentionBlock block(const Keys& keys, int64_t n) const {
    const int64_t high = keys.rows / 32, wide = lanes / 32;
    const int64_t r = n % high * 32, i = n / high % wide * 32, h = n / high / wide, at = h * lanes + i;
    return {keys.sight,
            r,
            i,
            plain ? a.shape.scale * kLog2E : kLog2E,
            a.shape.softcap > 0 ? 1 / a.shape.softcap : 0,
            floats(of_head(h, m.lse)) + i,
            floats(of_head(h, m.delta)) + i,
            floats(work + m.scores) + n % 2 * 1024,
            floats(work + m.slopes) + n % 2 * 1024,
            work + m.p + r * m.row_bytes + at * 2,
            work + m.ds + r * m.row_bytes + at * 2,
            work + m.pairs + (n / high % 2 * 2 + r / 32) * kStepBytes,
            m.row_bytes};
  }

  void products_of(const Keys& keys, int64_t n) {
    const int64_t high = keys.rows / 32, wide = lanes / 32, r = n % high * 32, i = n / high % wide,
                  h = n / high / wide;
    if (keys.sight.of(r, i * 32) == Sight::none) return;
    const auto product = [&](const TileRows& x, int64_t columns, int64_t to) {
      const TileRows part{x.data + r * x.stride, x.stride, x.steps};
      multiply(&part, 1, of_head(h, columns) + i * x.steps * kStepBytes, 32, 32,
               floats(work + to) + n % 2 * 1024, 32, true);
    };
    product(keys.k, m.q_columns, m.scores);
    product(keys.v, m.d_o_columns, m.slopes);
  }

  void slopes_of(const Keys& keys, int64_t n) {
    const AttentionBlock b = block(keys, n);
    const Sight seen = keys.sight.of(b.r, b.i);
    if (seen == Sight::none) return attention_no_slopes(b);
    if (!plain) attention_make_scores(a.shape, 1, 1024, floats(work + m.scores) + n % 2 * 1024);
    (seen == Sight::all ? b.per_cap > 0 ? attention_slopes<true, true> : attention_slopes<true, false>
     : b.per_cap > 0 ? attention_slopes<false, true>
                        : attention_slopes<false, false>)(b);
  }

  // dQ of 32 queries of one head.
  void queries_of(const Keys& keys, int64_t strip) {
    const int64_t wide = lanes / 32, h = strip / wide, i = strip % wide * 32;
    const TileRows across{blocks[keys.first].across, kTile * 2, keys.rows / 32};
    attention_product(&across, 1, padded, 32, work + m.pairs + strip % 2 * 2 * kStepBytes,
                      floats(of_head(h, m.sums)) + i, keys.start);
  }

  // p, ds and dQ. A block's products stand before the vectors' work on the block before it: tiles multiply
  // while that works on integers, not while it multiplies and adds (measured: TDPBF16PS and FMA take turns).
  void slopes_of(const Keys& keys) {
    const int64_t high = keys.rows / 32, count = high * (lanes / 32) * heads;
    products_of(keys, 0);
    for (int64_t n = 0; n < count; ++n) {
      if (n + 1 < count) products_of(keys, n + 1);
      if (n % high == 0 && n > 0) queries_of(keys, n / high - 1);
      slopes_of(keys, n);
    }
    queries_of(keys, count / high - 1);
  }

  // sums [kTile, padded] (+)= x, of all heads at hand, times what they keep.
  void keys_of(char* x, char* pairs, int64_t rows, float* sums, bool start) {
    for (int64_t r = 0; r < rows; r += 32) {
      const TileRows part{x + r * m.row_bytes, m.row_bytes, steps};
      for (int64_t c = 0; c < padded; c += 32)
        multiply(&part, 1, pairs + c / 32 * steps * kStepBytes, rows - r, padded - c, sums + r * padded + c,
                 padded, start);
    }
  }

  void run() {
    const int64_t key_begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
    const int64_t col = d.k_head * dim,
                  takes = (a.group() + attention::kHeadsAtOnce - 1) / attention::kHeadsAtOnce;
    for (int64_t k0 = key_begin; k0 < end; k0 += kTile) {
      const int64_t keys = std::min(kTile, end - k0), rows = (keys + 31) / 32 * 32, row = d.k_begin + k0;
      slopes_of({k0,
                 rows,
                 attention_rows({a.k, col, dim}, row, keys, work + m.k_copy),
                 attention_rows({a.v, col, dim}, row, keys, work + m.v_copy),
                 {{k0 - position, k0 - position + a.window() - 1}},
                 k0 == key_begin});
      const int64_t turn = attention::turn_of(
          a, d, k0, first, (head - d.k_head * a.group()) / attention::kHeadsAtOnce, takes);
      const KeyBlock b = blocks[k0];
      attention::await_turn(b.turn, static_cast<int32_t>(turn));
      keys_of(work + m.p, work + m.d_o_pairs, rows, b.dv, turn == 0);
      keys_of(work + m.ds, work + m.q_pairs, rows, b.dk, turn == 0);
      attention::end_turn(b.turn);
    }
  }

  void finish() {
    alignas(64) float scale[kTile];
    for (float& s : scale) s = a.shape.scale;
    for (int64_t h = 0; h < heads; ++h)
      attention_turn(floats(of_head(h, m.sums)), a.d_q, d.q_begin + first, queries, (head + h) * dim, dim,
                     scale, attention_unpacked);
  }
};

// Queries [first, first + kTile) of one document and the query heads of one key head.
inline void attention_backward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                    char* work) {
  const TileRegisters registers;
  AttentionBackward t(a, d, first, work);
  if (d.k_count <= kTile) attention_prepare_keys(a, d, 0, work);
  for (int64_t h = 0; h < a.group(); h += attention::kHeadsAtOnce) {
    t.begin(d.k_head * a.group() + h, at_most(a.group() - h, attention::kHeadsAtOnce));
    t.run();
    t.finish();
  }
  if (d.k_count <= kTile) attention_finish_keys(a, d, 0, work);
}
