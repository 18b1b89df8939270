// What the tests call of one ISA: arrays in, arrays out.
inline void simd_apply(SimdFunction f, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec v = load_part(x + i, n - i);
    const Vec of = f == SimdFunction::exp       ? exp(v)
                   : f == SimdFunction::exp2    ? exp2(v)
                   : f == SimdFunction::sigmoid ? sigmoid(v)
                                                : tanh(v);
    store_part(y + i, of, n - i);
  }
}

inline int simd_lanes() { return kLanes; }

// out[lane] = lane in [begin, end) ? 1 : 2
inline void simd_select(int64_t begin, int64_t end, float* out) {
  store(out, select_range(set1(1), begin, end, set1(2)));
}

inline void simd_mask(const float* x, const uint32_t* mask, float* out) { store(out, and_mask(load(x), mask)); }
inline float simd_sum(const float* x) { return sum(load(x)); }
inline float simd_max(const float* x) { return max_lane(load(x)); }
inline void simd_copy_part(const float* x, float* y, int64_t n) { store_part(y, load_part(x, n), n); }
inline void simd_copy_part16(const bf16* x, bf16* y, int64_t n) { store_part(y, load_part(x, n), n); }
inline void simd_round(const float* x, bf16* y) { store(y, load(x)); }
inline void simd_codes(const CodeTable& table, const float* x, uint8_t* codes) {
  nearest_codes(table, load(x), codes);
}
inline void simd_bytes(const float* table, const uint8_t* codes, float* out) {
  store(out, look_up_bytes(table, codes));
}
inline void simd_finite(const float* test, float* out) {
  store(out, select_finite(load(test), set1(1), set1(2)));
}
