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
// Lanes [begin, end) of a; the others from b.
inline Vec select_range(Vec a, int64_t begin, int64_t end, Vec b) { return begin <= 0 && end > 0 ? a : b; }
// a where the lane's mask is all ones, 0 where it is 0.
inline Vec and_mask(Vec a, const uint32_t* mask) {
  return {std::bit_cast<float>(std::bit_cast<uint32_t>(a.v) & *mask)};
}
inline float sum(Vec a) { return a.v; }
inline float max_lane(Vec a) { return a.v; }
// a * 2^n for integral n in [-126, 127].
inline Vec times_exp2(Vec a, Vec n) {
  return {a.v * std::bit_cast<float>((static_cast<int32_t>(n.v) + 127) << 23)};
}
inline Vec round_even(Vec a) { return {std::nearbyint(a.v)}; }
// x = whole + rest, |rest| <= 1/2, for times_exp2, which brings x into its range here.
struct WholeAndRest {
  Vec whole, rest;
};
inline WholeAndRest whole_and_rest(Vec x) {
  const Vec clamped = min(set1(127.f), max(set1(-126.f), x)), whole = round_even(clamped);
  return {whole, sub(clamped, whole)};
}
// Codes of four bits: the table's entry that the low bits name.
inline constexpr int kTable16 = 16;  // vectors that hold 16 floats
// Element i of codes packed two to a byte, the first in the high nibble.
inline Vec look_up_pairs(const Vec* table, const uint8_t* packed, int64_t i) {
  return table[i % 2 == 0 ? packed[i >> 1] >> 4 : packed[i >> 1] & 15];
}
// The low or the high nibble of a byte.
inline Vec look_up_nibbles(const Vec* table, const uint8_t* bytes, bool high) {
  return table[high ? *bytes >> 4 : *bytes & 15];
}
inline Vec load(const f16* p) { return {static_cast<float>(*p)}; }
inline Vec load(const int8_t* p) { return {static_cast<float>(*p)}; }
inline float to_float(f16 h) { return static_cast<float>(h); }
inline void transpose(Vec*) {}  // 1 x 1
// Codes of eight bits: the table's entries at kLanes of them.
inline Vec look_up_bytes(const float* table, const uint8_t* codes) { return {table[*codes]}; }
// The codes of kLanes values, none of them NaN.
inline void nearest_codes(const CodeTable& t, Vec x, uint8_t* codes) {
  const uint32_t bits = std::bit_cast<uint32_t>(x.v);
  const int32_t above =
      std::max(static_cast<int32_t>(bits << 1 >> 17), CodeTable::kBelow) - CodeTable::kBelow;
  const int32_t bin = std::min(above, CodeTable::kBins - 1) + (bits >> 31 ? CodeTable::kBins : 0);
  const uint16_t slot = t.slot[bin];
  *codes = static_cast<uint8_t>(slot + (x.v >= t.next[slot] ? 1 : 0));
}
// a where `test` is neither NaN nor infinite; b elsewhere.
inline Vec select_finite(Vec test, Vec a, Vec b) {
  return (std::bit_cast<uint32_t>(test.v) & 0x7f800000u) != 0x7f800000u ? a : b;
}
#include "kernels/common/simd_math.inl"
