// Products of integers for few_ints.inl, on one lane.

// Blocks of 32 nibbles whose products are side by side in a vector.
inline constexpr int kSide = 1;

// The greatest magnitude of n bf16 (32 divides n), as bits; NaN and Inf are the greatest.
inline uint32_t greatest_bits(const bf16* x, int64_t n) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) top = std::max<uint32_t>(top, x[i].bits & 0x7fff);
  return top;
}
// x * factor rounded to integers within +-limit, ties to even; NaN is any of them.
inline void round_ints(const bf16* x, int64_t n, float factor, int limit, int16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float f = std::nearbyint(static_cast<float>(x[i]) * factor);
    out[i] = static_cast<int16_t>(f >= static_cast<float>(limit) ? limit
                                  : f > -limit                   ? static_cast<int>(f)
                                                                 : -limit);
  }
}

struct Nibbles {
  const uint8_t* codes;
};
template <int64_t kBytes>
inline Nibbles load_nibbles(const uint8_t* block, int64_t) {
  return {block + kBytes - 16};
}
// Of nibbles with integers of 16 bits, each given as 256 * high + low: `planes` has for the lows of the 16
// bytes of a block, of all kSide blocks, their highs; the same for the nibbles above; then the lows of both.
inline int32_t sum_nibbles(const Nibbles& w, const int8_t* planes) {
  int32_t sum = 0;
  for (int j = 0; j < 16; ++j) {
    sum += (w.codes[j] & 15) * (256 * planes[j] + planes[32 + j]);
    sum += (w.codes[j] >> 4) * (256 * planes[16 + j] + planes[48 + j]);
  }
  return sum;
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes) {
  return {static_cast<float>(sum_nibbles(w, planes))};
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes, const int32_t* more) {
  return {static_cast<float>(sum_nibbles(w, planes) + *more)};
}
// The factors of `count` <= kSide blocks, each in the lanes that hold its products; 0 in the others.
inline Vec spread(const float* factors, int64_t) { return {*factors}; }

// 32 integers of 8 bits.
struct Bytes {
  const int8_t* codes;
};
inline Bytes load_bytes(const int8_t* w) { return {w}; }
inline Vec byte_products(const Bytes& w, const int16_t* x) {
  int32_t sum = 0;
  for (int j = 0; j < 32; ++j) sum += w.codes[j] * x[j];
  return {static_cast<float>(sum)};
}

// Blocks of 64 codes whose products are side by side in a vector.
inline constexpr int kCodeSide = 1;

// 64 codes of four bits, two to a byte, that stand for a table's integers: |table * x| <= 2^28. x: as
// put_codes left it, of all kCodeSide blocks.
struct CodeTable16 {
  int16_t values[16];
  explicit CodeTable16(const int16_t* table) { std::memcpy(values, table, sizeof values); }
};
struct Codes {
  const uint8_t* codes;
  const CodeTable16* table;
};
inline Codes load_codes(const CodeTable16& table, const uint8_t* codes, int64_t) { return {codes, &table}; }
inline Vec code_products(const Codes& w, const int16_t* x) {
  int64_t sum = 0;
  for (int j = 0; j < 32; ++j) {
    sum += int64_t{w.table->values[w.codes[j] & 15]} * x[j];
    sum += int64_t{w.table->values[w.codes[j] >> 4]} * x[32 + j];
  }
  return {static_cast<float>(sum)};
}
// The factors of `count` <= kCodeSide blocks, each in the lanes that hold its products; 0 in the others.
inline Vec spread_codes(const float* factor, int64_t) { return set1(*factor); }
// A block's integers as the products take them: what the low nibbles are multiplied by (codes that come
// second), then the high ones'.
inline void put_codes(const int16_t* v, int16_t* x) {
  for (int j = 0; j < 32; ++j) {
    x[j] = v[2 * j + 1];
    x[32 + j] = v[2 * j];
  }
}
// look_up_bytes of the first `count` codes; nothing is read after them.
inline Vec look_up_first(const float* table, const uint8_t* codes, int64_t) {
  return look_up_bytes(table, codes);
}

// fp16 numbers `at` and for some formats `at` + 2 bytes into `count` blocks that follow one another.
template <int64_t kBytes, bool kTwo>
inline void load_factors(const uint8_t* block, int64_t count, float* first, float* second) {
  for (int64_t i = 0; i < count; ++i, block += kBytes) {
    f16 half[2];
    std::memcpy(half, block, kTwo ? 4 : 2);
    first[i] = to_float(half[0]);
    if (kTwo) second[i] = to_float(half[1]);
  }
}

// The sums of kLanes vectors, each in its lane.
inline Vec sum_each(const Vec* v) { return *v; }
