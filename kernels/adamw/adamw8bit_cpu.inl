#include "kernels/adamw/adamw_cpu.inl"

// The moments of a block as they are coded: largest magnitude, then the entry nearest to each share of it.
inline void code_block(const CodeTable& table, const float* values, float largest, uint8_t* codes,
                       float& absmax) {
  absmax = largest < 0x1p-126f ? 0.0f : largest;
  if (absmax == 0) {
    std::memset(codes, 0, kBlock8);
    return;
  }
  const Vec inverse = set1(1.0f / absmax);
  for (int64_t i = 0; i < kBlock8; i += kLanes)
    nearest_codes(table, mul(load(values + i), inverse), codes + i);
}

// A whole block. Products and sums are rounded each: with a fused one, codes would hang on the ISA.
inline void adamw8bit_block(const AdamW8Args& a, const Block8& b) {
  alignas(64) float m[kBlock8], v[kBlock8];
  const Vec old_m = set1(*b.absmax_m), old_v = set1(*b.absmax_v), scale = set1(a.step.grad_scale);
  const Vec beta1 = set1(a.step.beta1), rest1 = set1(a.step.rest1), beta2 = set1(a.step.beta2),
            rest2 = set1(a.step.rest2);
  const Vec decay = set1(a.step.decay), rate = set1(a.step.rate), epsilon = set1(a.step.epsilon);
  Vec largest_m = zero(), largest_v = zero();
  for (int64_t i = 0; i < kBlock8; i += kLanes) {
    const Vec g = mul(load(b.grads + i), scale), p = load(b.params + i);
    const Vec decoded_m = mul(look_up_bytes(a.map_m, b.m + i), old_m),
              decoded_v = mul(look_up_bytes(a.map_v, b.v + i), old_v);
    const Vec any_m = add(mul(decoded_m, beta1), mul(rest1, g)),
              any_v = add(mul(decoded_v, beta2), mul(mul(rest2, g), g));
    const Vec fresh_m = select_finite(any_v, any_m, zero()), fresh_v = select_finite(any_v, any_v, zero());
    const Vec stepped = add(mul(p, decay), mul(rate, div(fresh_m, add(sqrt(fresh_v), epsilon))));
    store(b.params + i, select_finite(any_v, stepped, p));
    store(m + i, fresh_m);
    store(v + i, fresh_v);
    largest_m = max(largest_m, max(fresh_m, sub(zero(), fresh_m)));
    largest_v = max(largest_v, fresh_v);
  }
  code_block(*a.table_m, m, max_lane(largest_m), b.m, *b.absmax_m);
  code_block(*a.table_v, v, max_lane(largest_v), b.v, *b.absmax_v);
}

// The block that ends a tensor, filled up with elements whose moments are and stay 0.
inline void adamw8bit_tail(const AdamW8Args& a, const Block8& b, int64_t n) {
  float params[kBlock8] = {}, grads[kBlock8] = {};
  uint8_t m[kBlock8], v[kBlock8];
  std::memset(m, a.zero_m, kBlock8);
  std::memset(v, 0, kBlock8);
  const size_t count = static_cast<size_t>(n);
  std::memcpy(params, b.params, count * sizeof(float));
  std::memcpy(grads, b.grads, count * sizeof(float));
  std::memcpy(m, b.m, count);
  std::memcpy(v, b.v, count);
  adamw8bit_block(a, {params, grads, m, v, b.absmax_m, b.absmax_v});
  std::memcpy(b.params, params, count * sizeof(float));
  std::memcpy(b.m, m, count);
  std::memcpy(b.v, v, count);
}

inline void adamw8bit_run(const AdamW8Args& a, const Block8& first, int64_t count) {
  for (int64_t i = 0; i < count; i += kBlock8) {
    const Block8 b{first.params + i,
                   first.grads + i,
                   first.m + i,
                   first.v + i,
                   first.absmax_m + i / kBlock8,
                   first.absmax_v + i / kBlock8};
    count - i >= kBlock8 ? adamw8bit_block(a, b) : adamw8bit_tail(a, b, count - i);
  }
}
