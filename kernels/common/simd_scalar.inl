// A vector of one lane: what every body means on a CPU without AVX2.
struct Vec {
  float v;
};
inline constexpr int kLanes = 1;
inline Vec zero() { return {0.f}; }
inline Vec set1(float f) { return {f}; }
inline Vec load(const float* p) { return {*p}; }
inline Vec load(const bf16* p) { return {static_cast<float>(*p)}; }
inline void store(float* p, Vec a) { *p = a.v; }
inline void store(bf16* p, Vec a) { *p = bf16(a.v); }
// The first n of kLanes elements; the other lanes are 0, or left alone in memory.
inline Vec load_part(const float* p, int64_t n) { return n > 0 ? load(p) : zero(); }
inline Vec load_part(const bf16* p, int64_t n) { return n > 0 ? load(p) : zero(); }
inline void store_part(float* p, Vec a, int64_t n) {
  if (n > 0) store(p, a);
}
inline void store_part(bf16* p, Vec a, int64_t n) {
  if (n > 0) store(p, a);
}
inline Vec add(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec div(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec sqrt(Vec a) { return {std::sqrt(a.v)}; }
// a * b + c: one rounding where the ISA has it, two here.
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec round_bf16(Vec a) { return {static_cast<float>(bf16(a.v))}; }
inline float sum(Vec a) { return a.v; }
inline float max_lane(Vec a) { return a.v; }
// 2^round(n) for integral n in [-126, 127].
inline Vec exp2_integral(Vec n) { return {std::bit_cast<float>((static_cast<int32_t>(n.v) + 127) << 23)}; }
inline Vec round_even(Vec a) { return {std::nearbyint(a.v)}; }
#include "kernels/common/simd_math.inl"
