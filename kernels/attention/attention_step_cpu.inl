// One query head: scores [keys + head_dim] is its memory, q in fp32 at the end.

// A lane's part each of q . k.
template <class T>
inline Vec step_dot(const float* q, const T* k, int64_t n) {
  Vec total = zero();
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) total = fma(load(q + c), load(k + c), total);
  if (c < n) total = fma(load_part(q + c, n - c), load_part(k + c, n - c), total);
  return total;
}

// A head's part of a row of the cache lies far from the next row's: what will be wanted is asked for.
template <class T>
inline void step_ahead(const ConstMat& m, int64_t row, int64_t col, int64_t dim) {
  const char* const at = reinterpret_cast<const char*>(m.row<T>(row < m.rows ? row : m.rows - 1) + col);
  for (int64_t b = 0; b < dim * static_cast<int64_t>(sizeof(T)); b += 64) __builtin_prefetch(at + b);
}

// scores[j] = q . k[j] * scale, some keys' lanes turned into a lane a key.
template <class T>
inline void step_scores(const AttentionShape& s, const float* q, const ConstMat& k, const ConstMat& v,
                        int64_t first, int64_t keys, int64_t col, float* scores) {
  constexpr int64_t kKeysAhead = 32;
  for (int64_t j = 0; j < keys; j += kLanes) {
    const int64_t n = keys - j < kLanes ? keys - j : kLanes;
    Vec parts[kLanes];
    for (int64_t i = 0; i < n; ++i) {
      step_ahead<T>(k, first + j + i + kKeysAhead, col, s.head_dim);
      step_ahead<T>(v, first + j + i, col, s.head_dim);
    }
    for (int64_t i = 0; i < kLanes; ++i)
      parts[i] = i < n ? step_dot(q, k.row<T>(first + j + i) + col, s.head_dim) : zero();
    transpose(parts);
    Vec total = parts[0];
    for (int i = 1; i < kLanes; ++i) total = add(total, parts[i]);
    store_part(scores + j, mul(total, set1(s.scale)), n);
  }
  if (s.softcap > 0)
    for (int64_t j = 0; j < keys; ++j) scores[j] = s.softcap * std::tanh(scores[j] / s.softcap);
}

// scores[0 .. keys) to exp(score - greatest); returns their sum.
inline float step_softmax(float* scores, int64_t keys) {
  Vec top = set1(scores[0]);
  int64_t j = 0;
  for (; j + kLanes <= keys; j += kLanes) top = max(top, load(scores + j));
  float most = max_lane(top);
  for (; j < keys; ++j) most = scores[j] > most ? scores[j] : most;
  Vec total = zero();
  for (j = 0; j < keys; j += kLanes) {
    const int64_t n = keys - j < kLanes ? keys - j : kLanes;
    const Vec p = exp(sub(load_part(scores + j, n), set1(most)));
    store_part(scores + j, p, n);
    total = add(total, load_part(scores + j, n));
  }
  return sum(total);
}

template <class T>
inline void step_head(const AttentionShape& s, const T* q, const ConstMat& k, const ConstMat& v, int64_t col,
                      T* o, float* scores) {
  const int64_t dim = s.head_dim, first = s.window > 0 && s.window < k.rows ? k.rows - s.window : 0;
  const int64_t keys = k.rows - first;
  float* const wide = scores + k.rows;
  for (int64_t c = 0; c < dim; c += kLanes) store_part(wide + c, load_part(q + c, dim - c), dim - c);
  step_scores<T>(s, wide, k, v, first, keys, col, scores);
  const float total = step_softmax(scores, keys);
  constexpr int64_t kVecs = 4;  // columns that go side by side
  for (int64_t c = 0; c < dim; c += kVecs * kLanes) {
    Vec sums[kVecs];
    for (Vec& x : sums) x = zero();
    for (int64_t j = 0; j < keys; ++j) {
      const T* row = v.row<T>(first + j) + col + c;
      const Vec p = set1(scores[j]);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kVecs; ++i) {
        const int64_t left = dim - c - i * kLanes;
        if (left >= kLanes)
          sums[i] = fma(p, load(row + i * kLanes), sums[i]);
        else if (left > 0)
          sums[i] = fma(p, load_part(row + i * kLanes, left), sums[i]);
      }
    }
    for (int64_t i = 0; i < kVecs && c + i * kLanes < dim; ++i)
      store_part(o + c + i * kLanes, div(sums[i], set1(total)), dim - c - i * kLanes);
  }
}

inline void attention_step_head(const AttentionShape& s, const ConstMat& q, const ConstMat& k,
                                const ConstMat& v, const Mat& o, int64_t head, float* scores) {
  const int64_t at = head * s.head_dim, col = head / (s.q_heads / s.kv_heads) * s.head_dim;
  if (q.dtype == DType::f32)
    step_head(s, q.row<float>(0) + at, k, v, col, o.row<float>(0) + at, scores);
  else
    step_head(s, q.row<bf16>(0) + at, k, v, col, o.row<bf16>(0) + at, scores);
}
