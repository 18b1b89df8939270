// Rows of a weight of any format, decoded to fp32 vectors: the very values that every product multiplies.

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
