inline void adamw_lanes(const AdamWArgs& a, int64_t i, int64_t n) {
  const bool whole = n >= kLanes;
  const auto get = [&](const float* x) { return whole ? load(x + i) : load_part(x + i, n); };
  const auto put = [&](float* x, Vec value) { whole ? store(x + i, value) : store_part(x + i, value, n); };
  const Vec g = mul(get(a.grads), set1(a.grad_scale));
  const Vec m = fma(set1(a.beta1), get(a.m), mul(set1(a.rest1), g));
  const Vec v = fma(set1(a.beta2), get(a.v), mul(mul(set1(a.rest2), g), g));
  const Vec p = mul(get(a.params), set1(a.decay));
  put(a.m, m);
  put(a.v, v);
  put(a.params, fma(set1(a.rate), div(m, add(sqrt(v), set1(a.epsilon))), p));
}

inline void adamw_range(const AdamWArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) adamw_lanes(a, i, end - i);
}

inline void sgd_range(const SgdArgs& a, int64_t begin, int64_t end) {
  const Vec rate = set1(-a.lr), decay = set1(a.weight_decay), scale = set1(a.grad_scale);
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t n = end - i;
    const Vec p = n >= kLanes ? load(a.params + i) : load_part(a.params + i, n);
    const Vec g = n >= kLanes ? load(a.grads + i) : load_part(a.grads + i, n);
    const Vec stepped = fma(rate, fma(decay, p, mul(g, scale)), p);
    n >= kLanes ? store(a.params + i, stepped) : store_part(a.params + i, stepped, n);
  }
}
