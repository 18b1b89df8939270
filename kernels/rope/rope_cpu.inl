template <class T>
inline void rope_row(const RopeArgs& r, int64_t row) {
  const int64_t half = r.table.rotary_dims / 2;
  const float* cos = r.table.cos + r.positions[row] * half;
  const float* sin = r.table.sin + r.positions[row] * half;
  const Vec sign = set1(r.inverse ? -1.f : 1.f);
  for (int h = 0; h < r.heads; ++h) {
    T* a = r.x.row<T>(row) + int64_t{h} * r.head_dim;
    T* b = a + half;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec c = load(cos + i), s = mul(sign, load(sin + i));
      const Vec u = load(a + i), v = load(b + i);
      store(a + i, sub(mul(u, c), mul(v, s)));
      store(b + i, fma(v, c, mul(u, s)));
    }
    if (i < half) {
      const int64_t n = half - i;
      const Vec c = load_part(cos + i, n), s = mul(sign, load_part(sin + i, n));
      const Vec u = load_part(a + i, n), v = load_part(b + i, n);
      store_part(a + i, sub(mul(u, c), mul(v, s)), n);
      store_part(b + i, fma(v, c, mul(u, s)), n);
    }
  }
}

inline void rope_rows(const RopeArgs& r, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (r.x.dtype == DType::bf16)
      rope_row<bf16>(r, i);
    else
      rope_row<float>(r, i);
  }
}
