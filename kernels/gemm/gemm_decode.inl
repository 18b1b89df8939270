// Panels of W: kBlockK x kTileCols fp32, row k of the panel holding what k multiplies.

inline Vec as_multiplied(Vec w, bool to_bf16) { return to_bf16 ? round_bf16(w) : w; }

inline f16 load_f16(const uint8_t* p) {
  f16 h;
  std::memcpy(&h, p, sizeof h);
  return h;
}

// A row of W, decoded kLanes elements at a time from a column that kLanes divides. block(col) makes the block
// of that column ready and says how many of its elements are left; at(col) serves the columns of that block.
template <Format F>
class WeightRow;
inline constexpr int64_t kNoBlocks = INT64_MAX;

// Elements of their own.
template <class T>
class PlainRow {
 public:
  PlainRow() = default;
  PlainRow(const WeightView& w, int64_t row, bool to_bf16)
      : data_(static_cast<const T*>(w.data) + row * w.cols),
        scale_(w.scale),
        to_bf16_(to_bf16 && (dtype_of<T> != DType::bf16 || w.scale != 1.f)) {}
  int64_t block(int64_t) { return kNoBlocks; }
  Vec at(int64_t col) { return as_multiplied(mul(load(data_ + col), set1(scale_)), to_bf16_); }

 private:
  const T* data_;
  float scale_;
  bool to_bf16_;
};
template <>
class WeightRow<Format::f32> : public PlainRow<float> {
  using PlainRow<float>::PlainRow;
};
template <>
class WeightRow<Format::f16> : public PlainRow<f16> {
  using PlainRow<f16>::PlainRow;
};
template <>
class WeightRow<Format::bf16> : public PlainRow<bf16> {
  using PlainRow<bf16>::PlainRow;
};

template <>
class WeightRow<Format::int8> {
 public:
  WeightRow() = default;
  WeightRow(const WeightView& w, int64_t row, bool to_bf16)
      : data_(static_cast<const int8_t*>(w.data) + row * w.cols),
        absmax_(w.absmax[row]),
        scale_(w.scale),
        to_bf16_(to_bf16) {}
  int64_t block(int64_t) { return kNoBlocks; }
  Vec at(int64_t col) {
    const Vec w = mul(mul(load(data_ + col), set1(absmax_)), set1(1.0f / 127.0f));
    return as_multiplied(mul(w, set1(scale_)), to_bf16_);
  }

 private:
  const int8_t* data_;
  float absmax_, scale_;
  bool to_bf16_;
};

template <>
class WeightRow<Format::q8_0> {
 public:
  WeightRow() = default;
  WeightRow(const WeightView& w, int64_t row, bool to_bf16)
      : data_(static_cast<const uint8_t*>(w.data) + row * (w.cols / 32) * 34),
        scale_(w.scale),
        to_bf16_(to_bf16) {}
  int64_t block(int64_t col) {
    codes_ = data_ + col / 32 * 34 + 2;
    factor_ = to_float(load_f16(codes_ - 2));
    return 32 - col % 32;
  }
  Vec at(int64_t col) {
    const Vec w = mul(load(reinterpret_cast<const int8_t*>(codes_ + col % 32)), set1(factor_));
    return as_multiplied(mul(w, set1(scale_)), to_bf16_);
  }

 private:
  const uint8_t *data_, *codes_;
  float factor_, scale_;
  bool to_bf16_;
};

// Codes of four bits: the 16 values of a block are worked out once, scaled and rounded; its elements are
// looked up.
struct BlockTable {
  Vec values[kTable16];

  void fill(const float* codebook, float factor, float offset, float scale, bool to_bf16) {
    for (int i = 0; i < kTable16; ++i) {
      const Vec w = add(mul(load(codebook + i * kLanes), set1(factor)), set1(offset));
      values[i] = as_multiplied(mul(w, set1(scale)), to_bf16);
    }
  }
};

template <Format F>
class BnbRow {
 public:
  BnbRow() = default;
  BnbRow(const WeightView& w, int64_t row, bool to_bf16)
      : codes_(static_cast<const uint8_t*>(w.data)), first_(row * w.cols), w_(&w), to_bf16_(to_bf16) {}
  int64_t block(int64_t col) {
    const int64_t i = first_ + col, index = i >> __builtin_ctz(static_cast<unsigned>(w_->block_size));
    // -0 as the offset leaves every product as it is.
    table_.fill(F == Format::nf4 ? kNf4.data() : kFp4.data(), w_->block_scale(index), -0.f, w_->scale,
                to_bf16_);
    return (index + 1) * w_->block_size - i;
  }
  Vec at(int64_t col) const { return look_up_pairs(table_.values, codes_, first_ + col); }

 private:
  BlockTable table_;
  const uint8_t* codes_;
  int64_t first_;
  const WeightView* w_;
  bool to_bf16_;
};
template <>
class WeightRow<Format::nf4> : public BnbRow<Format::nf4> {
  using BnbRow<Format::nf4>::BnbRow;
};
template <>
class WeightRow<Format::fp4> : public BnbRow<Format::fp4> {
  using BnbRow<Format::fp4>::BnbRow;
};

// GGUF: byte j of a block has element j in its low nibble and j + 16 in its high one.
inline constexpr float kQ40[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
inline constexpr float kQ41[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <bool kOffset>
class NibbleRow {
 public:
  NibbleRow() = default;
  NibbleRow(const WeightView& w, int64_t row, bool to_bf16)
      : data_(static_cast<const uint8_t*>(w.data) + row * (w.cols / 32) * kBytes),
        scale_(w.scale),
        to_bf16_(to_bf16) {}
  int64_t block(int64_t col) {
    const uint8_t* block = data_ + col / 32 * kBytes;
    codes_ = block + kBytes - 16;
    const float offset = kOffset ? to_float(load_f16(block + 2)) : -0.f;
    table_.fill(kOffset ? kQ41 : kQ40, to_float(load_f16(block)), offset, scale_, to_bf16_);
    return 32 - col % 32;
  }
  Vec at(int64_t col) const { return look_up_nibbles(table_.values, codes_ + col % 16, col % 32 >= 16); }

 private:
  static constexpr int64_t kBytes = kOffset ? 20 : 18;
  BlockTable table_;
  const uint8_t *data_, *codes_;
  float scale_;
  bool to_bf16_;
};
template <>
class WeightRow<Format::q4_0> : public NibbleRow<false> {
  using NibbleRow<false>::NibbleRow;
};
template <>
class WeightRow<Format::q4_1> : public NibbleRow<true> {
  using NibbleRow<true>::NibbleRow;
};

// Whether WeightRow serves w: its groups of kLanes elements lie whole in one block, at whole bytes. (One lane
// of a plain element must be aligned, as files do not promise.)
inline bool in_lanes(const WeightView& w) {
  switch (w.format) {
    case Format::nf4:
    case Format::fp4:
      return w.cols % kLanes == 0 && w.block_size % kLanes == 0 && (w.block_size & (w.block_size - 1)) == 0;
    case Format::f32:
      return kLanes > 1 || reinterpret_cast<uintptr_t>(w.data) % sizeof(float) == 0;
    case Format::f16:
    case Format::bf16:
      return kLanes > 1 || reinterpret_cast<uintptr_t>(w.data) % sizeof(uint16_t) == 0;
    default:
      return true;
  }
}

// Any n <= kLanes elements of any row; the other lanes are 0.
inline Vec decode_part(const WeightView& w, int64_t row, int64_t col, int64_t n, bool to_bf16) {
  float part[kLanes] = {};
  if (n > 0) decode_row(w, row, col, n, part);
  return as_multiplied(load(part), to_bf16);
}

// Elements of more than a byte are too many to wait for; their rows lie further apart than the hardware
// looks.
inline constexpr int64_t kRowsAhead = 16;
template <Format F>
inline void prefetch(const WeightView& w, int64_t row, int64_t col, int64_t n) {
  constexpr int64_t kBytes = F == Format::f32 ? 4 : F == Format::f16 || F == Format::bf16 ? 2 : 0;
  const char* p = static_cast<const char*>(w.data) + (row * w.cols + col) * kBytes;
  for (int64_t b = 0; b < n * kBytes; b += 64) __builtin_prefetch(p + b);
  if (kBytes > 0) __builtin_prefetch(p + n * kBytes - 1);
}

// Rows row .. row+rows of W, elements k .. k+count of each, transposed: to one vector's width of the panel.
template <Format F>
inline void panel_nt_lanes(const WeightView& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                           bool to_bf16, float* panel) {
  WeightRow<F> decoder[kLanes];
  for (int64_t r = 0; r < rows; ++r) {
    decoder[r] = WeightRow<F>(w, row + r, to_bf16);
    if (row + r + kRowsAhead < w.rows) prefetch<F>(w, row + r + kRowsAhead, k, count);
  }
  Vec v[kLanes];
  const int64_t whole = in_lanes(w) ? count - count % kLanes : 0;
  int64_t i = 0;
  while (i < whole) {
    int64_t end = whole;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t left = decoder[r].block(k + i);
      if (left < end - i) end = i + left;
    }
    for (; i < end; i += kLanes) {
      if (rows == kLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) v[r] = decoder[r].at(k + i);
      } else {
        for (int64_t r = 0; r < kLanes; ++r) v[r] = r < rows ? decoder[r].at(k + i) : zero();
      }
      transpose(v);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(panel + (i + j) * kTileCols, v[j]);
    }
  }
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    for (int64_t r = 0; r < kLanes; ++r)
      v[r] = r < rows ? decode_part(w, row + r, k + i, n, to_bf16) : zero();
    transpose(v);
    for (int64_t j = 0; j < n; ++j) store(panel + (i + j) * kTileCols, v[j]);
  }
}

// Rows col .. col+cols of W [N, K], elements k .. k+count of each.
template <Format F>
inline void panel_nt(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, bool to_bf16,
                     float* panel) {
  for (int64_t j = 0; j < cols; j += kLanes)
    panel_nt_lanes<F>(w, col + j, cols - j < kLanes ? cols - j : kLanes, k, count, to_bf16, panel + j);
}

// Rows k .. k+count of W [K, N], columns col .. col+cols of each.
template <Format F>
inline void panel_nn(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, bool to_bf16,
                     float* panel) {
  const int64_t whole = in_lanes(w) ? cols - cols % kLanes : 0;
  for (int64_t i = 0; i < count; ++i, panel += kTileCols) {
    WeightRow<F> row(w, k + i, to_bf16);
    if (i + kRowsAhead < count) prefetch<F>(w, k + i + kRowsAhead, col, cols);
    int64_t j = 0;
    while (j < whole) {
      const int64_t left = row.block(col + j), end = left < whole - j ? j + left : whole;
      for (; j < end; j += kLanes) store(panel + j, row.at(col + j));
    }
    for (; j < cols; j += kLanes)
      store(panel + j, decode_part(w, k + i, col + j, cols - j < kLanes ? cols - j : kLanes, to_bf16));
  }
}

template <Format F>
inline void panel_of(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                     int64_t count, bool to_bf16, float* panel) {
  if (transposed_w)
    panel_nt<F>(w, col, cols, k, count, to_bf16, panel);
  else
    panel_nn<F>(w, col, cols, k, count, to_bf16, panel);
}

inline void decode_panel(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                         int64_t count, bool to_bf16, float* panel) {
  switch (w.format) {
    case Format::f32:
      return panel_of<Format::f32>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::f16:
      return panel_of<Format::f16>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::bf16:
      return panel_of<Format::bf16>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::nf4:
      return panel_of<Format::nf4>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::fp4:
      return panel_of<Format::fp4>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::int8:
      return panel_of<Format::int8>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q4_0:
      return panel_of<Format::q4_0>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q4_1:
      return panel_of<Format::q4_1>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q8_0:
      return panel_of<Format::q8_0>(transposed_w, w, col, cols, k, count, to_bf16, panel);
  }
}
