// The backward pass on vectors, in one go through the keys, as on tiles (attention_bf16_backward.inl): p and ds
// serve dQ, dK and dV. A task keeps the queries of a block and the heads of one group, and adds to the sums of
// the key blocks that it sees. Those take turns: the last block of queries comes first, so the order of a
// sum's terms is that of the tasks.

// Tiles of scores' x (in p) and of dp (in ds) become p = 2^(factor x + shift) and ds, the gradient to the
// scaled products; 0 out of the band. Lanes are queries, whose shift and delta they have.
template <bool kMasked>
inline void attention_slopes(const AttentionScore& score, float factor, const AttentionBand& band,
                             int64_t keys, int64_t lanes, const float* shift, const float* delta, float* p,
                             float* ds) {
  using attention::kTile;
  for (int64_t i = 0; i < lanes; i += kLanes) {
    const Vec from = load(shift + i), mean = load(delta + i);
    for (int64_t r = 0; r < keys; ++r) {
      float *p_at = p + r * kTile + i, *ds_at = ds + r * kTile + i;
      Vec weight = zero(), slope = zero();
      if (!kMasked || !band.misses(r, i)) {
        const Vec x = load(p_at);
        weight = exp2(fma(x, set1(factor), from));
        slope = score.slope(mul(weight, sub(load(ds_at), mean)), x);
      }
      store(p_at, kMasked ? band.keep(weight, r, i, zero()) : weight);
      store(ds_at, kMasked ? band.keep(slope, r, i, zero()) : slope);
    }
  }
}

inline attention::DocumentKeys attention_keys(const attention::Args& a, const attention::Rows& d,
                                              char* work) {
  return {a, d, attention::KeyBlocks(a.padded_dim(), true, false), work + attention::VectorBackward(a).own};
}

inline void attention_prepare_keys(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   char* work) {
  *attention_keys(a, d, work)[first].turn = 0;
}

// Keys [first, first + kTile): the sums become dK and dV; no query sees keys that nothing was added to.
template <class T>
inline void attention_finish_block(const attention::Args& a, const attention::Rows& d, int64_t first,
                                   char* work) {
  const attention::KeyBlock b = attention_keys(a, d, work)[first];
  const int64_t dim = a.dim(), padded = a.padded_dim();
  const int64_t keys = std::min(attention::kTile, d.k_count - first);
  if (d.q_count == 0 || *b.turn == 0) {
    std::memset(b.dk, 0, static_cast<size_t>(attention::kTile * padded) * sizeof(float));
    std::memset(b.dv, 0, static_cast<size_t>(attention::kTile * padded) * sizeof(float));
  }
  attention_unpack<T>(b.dk, padded, a.d_k, d.k_begin + first, keys, d.k_head * dim, dim, a.shape.scale);
  attention_unpack<T>(b.dv, padded, a.d_v, d.k_begin + first, keys, d.k_head * dim, dim, 1.f);
}

inline void attention_finish_keys(const attention::Args& a, const attention::Rows& d, int64_t first,
                                  char* work) {
  if (a.q.dtype == DType::bf16)
    attention_finish_block<bf16>(a, d, first, work);
  else
    attention_finish_block<float>(a, d, first, work);
}

// One task's queries and up to vector_heads of its group.
template <class T>
struct AttentionBackward {
  const attention::Args& a;
  const attention::Rows& d;
  const attention::VectorBackward m;
  char* const work;
  const int64_t first, queries, lanes, dim, padded, position;
  const attention::DocumentKeys blocks;
  const AttentionScore score;
  const AttentionPower power;
  int64_t head = 0, heads = 0;  // those at hand

  AttentionBackward(const attention::Args& a, const attention::Rows& d, int64_t first, char* work)
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
        blocks(attention_keys(a, d, work)),
        score(a.shape),
        power(a.shape) {}

  float* floats(int64_t at) const { return reinterpret_cast<float*>(work + at); }
  float* of_head(int64_t h, int64_t at) const { return floats(m.heads + h * m.head_bytes + at); }

  // rowsum(d_o * o)
  float delta(int64_t row, int64_t col) const {
    const T *o = a.o.row<T>(row) + col, *d_o = a.d_o.row<T>(row) + col;
    Vec s = zero();
    int64_t j = 0;
    for (; j + kLanes <= dim; j += kLanes) s = fma(load(o + j), load(d_o + j), s);
    if (j < dim) s = fma(load_part(o + j, dim - j), load_part(d_o + j, dim - j), s);
    return sum(s);
  }

  // Packs what stays.
  void begin(int64_t from, int64_t count) {
    head = from;
    heads = count;
    const int64_t row = d.q_begin + first;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t col = (head + h) * dim;
      attention_pack<T>(a.q, row, queries, col, dim, padded, of_head(h, m.q));
      attention_pack<T>(a.d_o, row, queries, col, dim, padded, of_head(h, m.d_o));
      attention_pack_across<T>(a.q, row, queries, col, dim, of_head(h, m.q_across));
      attention_pack_across<T>(a.d_o, row, queries, col, dim, of_head(h, m.d_o_across));
      float *lse = of_head(h, m.lse), *mean = of_head(h, m.delta);
      for (int64_t i = 0; i < attention::kTile; ++i) {
        lse[i] = i < queries ? -kAttentionLog2E * a.lse[(head + h) * a.lse_stride + row + i] : 0;
        mean[i] = i < queries ? delta(row + i, col) : 0;
      }
    }
  }

  // c (+)= p b
  template <bool kAcross>
  void add(const AttentionBand& band, int64_t rows, int64_t depth, const float* p, const float* b, float* c,
           bool start) const {
    if (start)
      attention_accumulate<kAcross, Sum::assign>(band, rows, attention_lanes(dim), depth, p, b, c, padded);
    else
      attention_accumulate<kAcross, Sum::add>(band, rows, attention_lanes(dim), depth, p, b, c, padded);
  }

  void slopes_of(int64_t h, const AttentionBand& band, int64_t keys) const {
    float *p = floats(m.p), *ds = floats(m.ds);
    attention_scores(band, keys, lanes, dim, floats(m.k), padded, of_head(h, m.q_across), p);
    attention_scores(band, keys, lanes, dim, floats(m.v), padded, of_head(h, m.d_o_across), ds);
    if (!power.plain) attention_make_scores(a.shape, keys, lanes, p);
    (band.cuts(keys, lanes) ? attention_slopes<true> : attention_slopes<false>)(
        score, power.factor, band, keys, lanes, of_head(h, m.lse), of_head(h, m.delta), p, ds);
  }

  void run() const {
    using attention::kTile;
    const int64_t key_begin = std::max<int64_t>(0, position - a.window() + 1) / kTile * kTile;
    const int64_t step = attention::vector_heads(a), col = d.k_head * dim;
    for (int64_t k0 = key_begin, end = position + queries; k0 < end; k0 += kTile) {
      const int64_t keys = std::min(kTile, end - k0);
      const AttentionBand band{k0 - position, k0 - position + a.window() - 1};
      const int64_t turn = attention::turn_of(a, d, k0, first, (head - d.k_head * a.group()) / step,
                                              (a.group() + step - 1) / step);
      const attention::KeyBlock b = blocks[k0];
      attention_pack<T>(a.k, d.k_begin + k0, keys, col, dim, padded, floats(m.k));
      attention_pack<T>(a.v, d.k_begin + k0, keys, col, dim, padded, floats(m.v));
      for (int64_t h = 0; h < heads; ++h) {
        slopes_of(h, band, keys);
        add<true>(band, queries, keys, floats(m.ds), floats(m.k), of_head(h, m.sums), k0 == key_begin);
        if (h == 0) attention::await_turn(b.turn, static_cast<int32_t>(turn));
        add<false>(band, keys, queries, floats(m.p), of_head(h, m.d_o), b.dv, turn == 0 && h == 0);
        add<false>(band, keys, queries, floats(m.ds), of_head(h, m.q), b.dk, turn == 0 && h == 0);
      }
      attention::end_turn(b.turn);
    }
  }

  void finish() const {
    for (int64_t h = 0; h < heads; ++h)
      attention_unpack<T>(of_head(h, m.sums), padded, a.d_q, d.q_begin + first, queries, (head + h) * dim,
                          dim, a.shape.scale);
  }
};

// Queries [first, first + kTile) of one document and the query heads of one key head.
template <class T>
inline void attention_backward_group(const attention::Args& a, const attention::Rows& d, int64_t first,
                                     char* work) {
  AttentionBackward<T> t(a, d, first, work);
  const bool alone = d.k_count <= attention::kTile;
  if (alone) attention_prepare_keys(a, d, 0, work);
  const int64_t step = attention::vector_heads(a);
  for (int64_t h = 0; h < a.group(); h += step) {
    t.begin(d.k_head * a.group() + h, std::min(step, a.group() - h));
    t.run();
    t.finish();
  }
  if (alone) attention_finish_block<T>(a, d, 0, work);
}

inline void attention_backward_task(const attention::Args& a, const attention::Rows& d, int64_t first,
                                    char* work) {
  if (a.q.dtype == DType::bf16)
    attention_backward_group<bf16>(a, d, first, work);
  else
    attention_backward_group<float>(a, d, first, work);
}
