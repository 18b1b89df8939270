// One query head: scores [keys] is its memory.

template <class T>
inline float step_dot(const T* a, const T* b, int64_t n) {
  Vec total = zero();
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) total = fma(load(a + c), load(b + c), total);
  if (c < n) total = fma(load_part(a + c, n - c), load_part(b + c, n - c), total);
  return sum(total);
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
  for (int64_t j = 0; j < keys; ++j) {
    const float score = step_dot(q, k.row<T>(first + j) + col, dim) * s.scale;
    scores[j] = s.softcap > 0 ? s.softcap * std::tanh(score / s.softcap) : score;
  }
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
