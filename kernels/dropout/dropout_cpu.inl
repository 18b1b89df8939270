inline constexpr int64_t kDropoutTile = 128;

// All ones where an element of columns [first, first + kDropoutTile) is kept: ref::dropout_bits, written out
// here so that it is compiled for the ISA.
inline void dropout_masks(uint64_t token_key, uint32_t first, uint32_t threshold, uint32_t* masks) {
  const uint32_t low = static_cast<uint32_t>(token_key), high = static_cast<uint32_t>(token_key >> 32);
  for (uint32_t j = 0; j < kDropoutTile; ++j) {
    uint32_t x = (first + j) * 0x9E3779B1u + low;
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) + high;
    x = (x ^ (x >> 13)) * 0x846CA68Bu;
    x = (x ^ (x >> 16)) * 0xC2B2AE35u;
    x ^= x >> 15;
    masks[j] = x >= threshold ? ~0u : 0u;
  }
}

template <class TX, class TY, bool kAdd>
inline void dropout_row(const DropoutArgs& a, int64_t row) {
  const TX* x = a.x.row<TX>(row);
  TY* y = a.y.row<TY>(row);
  const uint64_t key = ref::dropout_token_key(a.module_key, a.tokens[row]);
  const Vec scale = set1(a.scale);
  uint32_t masks[kDropoutTile];
  for (int64_t first = 0; first < a.x.cols; first += kDropoutTile) {
    dropout_masks(key, static_cast<uint32_t>(first), a.threshold, masks);
    const int64_t count = a.x.cols - first < kDropoutTile ? a.x.cols - first : kDropoutTile;
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      const Vec kept = and_mask(mul(load(x + first + j), scale), masks + j);
      store(y + first + j, kAdd ? add(load(y + first + j), kept) : kept);
    }
    if (j < count) {
      const int64_t n = count - j;
      const Vec kept = and_mask(mul(load_part(x + first + j, n), scale), masks + j);
      store_part(y + first + j, kAdd ? add(load_part(y + first + j, n), kept) : kept, n);
    }
  }
}

inline void dropout_forward_rows(const DropoutArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (a.x.dtype == DType::bf16)
      dropout_row<bf16, bf16, false>(a, i);
    else
      dropout_row<float, float, false>(a, i);
  }
}

inline void dropout_backward_rows(const DropoutArgs& a, int64_t begin, int64_t end) {
  const bool x16 = a.x.dtype == DType::bf16, y16 = a.y.dtype == DType::bf16;
  for (int64_t i = begin; i < end; ++i) {
    if (x16 && y16) dropout_row<bf16, bf16, true>(a, i);
    if (x16 && !y16) dropout_row<bf16, float, true>(a, i);
    if (!x16 && y16) dropout_row<float, bf16, true>(a, i);
    if (!x16 && !y16) dropout_row<float, float, true>(a, i);
  }
}
