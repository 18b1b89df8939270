// y[m, n] is one chain of multiply-adds a lane, over the terms' columns in order (where a term has blocks,
// over the blocks' own sums), and then the sum of the lanes: how many rows or outputs go side by side changes
// no bit.

#include "kernels/gemm/weight_row.inl"

// Rows and outputs that go side by side: two sums of each, a weight and an x fit the registers.
inline constexpr int kFewSums = kLanes == 16 ? 8 : 4;

// A row of W in whole blocks: at(block, j) is the j-th vector of a block without its factor (and offset),
// which factors() decodes for some blocks at a time.
template <Format F>
class FactoredRow;

template <Format F>
class FactoredBnbRow {
 public:
  static constexpr bool kOffset = false;
  static int64_t block_size(const WeightView& w) { return w.block_size; }
  FactoredBnbRow(const WeightView& w, int64_t row, int64_t ahead)
      : codes_(static_cast<const uint8_t*>(w.data) + row * w.cols / 2),
        ahead_(ahead * w.cols / 2),
        first_(row * w.cols / w.block_size),
        w_(&w) {
    for (int i = 0; i < kTable16; ++i) table_[i] = load((F == Format::nf4 ? kNf4 : kFp4).data() + i * kLanes);
  }
  void factors(int64_t block, int64_t count, float* factor, float*) const {
    for (int64_t i = 0; i < count; ++i) factor[i] = w_->block_scale(first_ + block + i) * w_->scale;
  }
  Vec at(int64_t block, int j) const {
    const int64_t i = block * w_->block_size + j * kLanes;
    if (i % 128 == 0) __builtin_prefetch(codes_ + i / 2 + ahead_);
    return look_up_pairs(table_, codes_, i);
  }

 private:
  Vec table_[kTable16];
  const uint8_t* codes_;
  int64_t ahead_, first_;
  const WeightView* w_;
};
template <>
class FactoredRow<Format::nf4> : public FactoredBnbRow<Format::nf4> {
  using FactoredBnbRow<Format::nf4>::FactoredBnbRow;
};
template <>
class FactoredRow<Format::fp4> : public FactoredBnbRow<Format::fp4> {
  using FactoredBnbRow<Format::fp4>::FactoredBnbRow;
};

inline constexpr int64_t kFactors = 16;  // decoded at a time, whole vectors

// GGUF's blocks of 32: kBytes each, fp16 factor and where there is one offset before the codes.
template <int64_t kBytes, bool kWithOffset>
class FactoredGgufRow {
 public:
  static constexpr bool kOffset = kWithOffset;
  static int64_t block_size(const WeightView&) { return 32; }
  FactoredGgufRow(const WeightView& w, int64_t row, int64_t ahead)
      : data_(static_cast<const uint8_t*>(w.data) + row * (w.cols / 32) * kBytes),
        ahead_(ahead * (w.cols / 32) * kBytes),
        scale_(w.scale) {}
  void factors(int64_t block, int64_t count, float* factor, float* offset) const {
    decode(block, count, 0, factor);
    if (kOffset) decode(block, count, 2, offset);
  }

 protected:
  const uint8_t* codes(int64_t block) const {
    const uint8_t* begin = data_ + block * kBytes;
    __builtin_prefetch(begin + ahead_);
    return begin + (kOffset ? 4 : 2);
  }

 private:
  void decode(int64_t block, int64_t count, int64_t at, float* out) const {
    f16 half[kFactors] = {};
    for (int64_t i = 0; i < count; ++i) std::memcpy(&half[i], data_ + (block + i) * kBytes + at, sizeof(f16));
    for (int64_t i = 0; i < kFactors; i += kLanes) store(out + i, mul(load(half + i), set1(scale_)));
  }
  const uint8_t* data_;
  int64_t ahead_;
  float scale_;
};

template <int64_t kBytes, bool kWithOffset>
class FactoredNibbleRow : public FactoredGgufRow<kBytes, kWithOffset> {
 public:
  FactoredNibbleRow(const WeightView& w, int64_t row, int64_t ahead)
      : FactoredGgufRow<kBytes, kWithOffset>(w, row, ahead) {
    for (int i = 0; i < kTable16; ++i) table_[i] = load((kWithOffset ? kQ41 : kQ40) + i * kLanes);
  }
  Vec at(int64_t block, int j) const {
    return look_up_nibbles(table_, this->codes(block) + j * kLanes % 16, j * kLanes >= 16);
  }

 private:
  Vec table_[kTable16];
};
template <>
class FactoredRow<Format::q4_0> : public FactoredNibbleRow<18, false> {
  using FactoredNibbleRow<18, false>::FactoredNibbleRow;
};
template <>
class FactoredRow<Format::q4_1> : public FactoredNibbleRow<20, true> {
  using FactoredNibbleRow<20, true>::FactoredNibbleRow;
};
template <>
class FactoredRow<Format::q8_0> : public FactoredGgufRow<34, false> {
 public:
  using FactoredGgufRow<34, false>::FactoredGgufRow;
  Vec at(int64_t block, int j) const {
    return load(reinterpret_cast<const int8_t*>(codes(block) + j * kLanes));
  }
};

// The row is one block.
template <>
class FactoredRow<Format::int8> {
 public:
  static constexpr bool kOffset = false;
  static int64_t block_size(const WeightView& w) { return w.cols; }
  FactoredRow(const WeightView& w, int64_t row, int64_t ahead)
      : data_(static_cast<const int8_t*>(w.data) + row * w.cols),
        ahead_(ahead * w.cols),
        factor_(w.absmax[row] * (1.0f / 127.0f) * w.scale) {}
  void factors(int64_t, int64_t, float* factor, float*) const { *factor = factor_; }
  Vec at(int64_t, int64_t j) const {
    const int8_t* codes = data_ + j * kLanes;
    __builtin_prefetch(codes + ahead_);
    return load(codes);
  }

 private:
  const int8_t* data_;
  int64_t ahead_;
  float factor_;
};

// Whether FactoredRow serves w: rows are whole blocks of whole vectors.
template <Format F>
inline bool factors_out(const WeightView& w) {
  const int64_t size = FactoredRow<F>::block_size(w);
  return w.cols > 0 && w.cols % size == 0 && size % kLanes == 0;
}

// sums[r][m] += w[n + r, :] x[m, :] of a term whose columns `whole` .. cols fill no vector.
template <int kOutputs, int kRows>
inline void few_rest(const WeightView& w, int64_t n, int64_t whole, const float* x, int64_t stride,
                     bool to_bf16, Vec (&sums)[kOutputs][kRows]) {
  for (int64_t k = whole; k < w.cols; k += kLanes)
    for (int r = 0; r < kOutputs; ++r) {
      const Vec weight = decode_part(w, n + r, k, w.cols - k < kLanes ? w.cols - k : kLanes, to_bf16);
      for (int m = 0; m < kRows; ++m) sums[r][m] = fma(weight, load(x + m * stride + k), sums[r][m]);
    }
}

// The same of the columns before.
template <class Row, int kOutputs, int kRows>
inline void few_elements(Row* row, int64_t whole, const float* x, int64_t stride,
                         Vec (&sums)[kOutputs][kRows]) {
  for (int64_t k = 0; k < whole;) {
    int64_t end = whole;
    for (int r = 0; r < kOutputs; ++r) {
      const int64_t left = row[r].block(k);
      if (left < end - k) end = k + left;
    }
    for (; k < end; k += kLanes)
#pragma GCC unroll 4
      for (int r = 0; r < kOutputs; ++r) {
        const Vec weight = row[r].at(k);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) sums[r][m] = fma(weight, load(x + m * stride + k), sums[r][m]);
      }
  }
}

// Block after block: factor * (sum of the block) + offset * (sum of its x).
template <class Row, int kOutputs, int kRows>
inline void few_blocks(const Row* row, int64_t size, int64_t blocks, const float* x, int64_t stride,
                       Vec (&sums)[kOutputs][kRows]) {
  const auto vectors = static_cast<int>(size / kLanes);
  float factor[kOutputs][kFactors], offset[kOutputs][kFactors];
  for (int64_t b = 0; b < blocks; ++b, x += size) {
    const int64_t at = b % kFactors;
    if (at == 0)
      for (int r = 0; r < kOutputs; ++r)
        row[r].factors(b, blocks - b < kFactors ? blocks - b : kFactors, factor[r], offset[r]);
    Vec of_block[kOutputs][kRows], of_x[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const Vec xs = load(x + m * stride);
      if (Row::kOffset) of_x[m] = xs;
#pragma GCC unroll 4
      for (int r = 0; r < kOutputs; ++r) of_block[r][m] = mul(row[r].at(b, 0), xs);
    }
#pragma GCC unroll 3
    for (int j = 1; j < vectors; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < kOutputs; ++r) {
        const Vec weight = row[r].at(b, j);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m)
          of_block[r][m] = fma(weight, load(x + m * stride + j * kLanes), of_block[r][m]);
      }
      if (Row::kOffset)
        for (int m = 0; m < kRows; ++m) of_x[m] = add(of_x[m], load(x + m * stride + j * kLanes));
    }
#pragma GCC unroll 4
    for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        sums[r][m] = fma(of_block[r][m], set1(factor[r][at]), sums[r][m]);
        if (Row::kOffset) sums[r][m] = fma(of_x[m], set1(offset[r][at]), sums[r][m]);
      }
  }
}

// The weights are gemm_nt's, but that those of whole blocks beside a bf16 x are not rounded to bf16.
template <Format F, int kOutputs, int kRows>
inline void few_term(const WeightView& w, int64_t n, const float* x, int64_t stride, DType type,
                     Vec (&all)[kOutputs][kRows]) {
  Vec sums[kOutputs][kRows];  // in registers: bytes that are read may not lie in them
  std::memcpy(sums, all, sizeof sums);
  const auto rows_of = [&]<class Row, size_t... r>(std::type_identity<Row>, auto more,
                                                   std::index_sequence<r...>) {
    return std::array<Row, kOutputs>{Row(w, n + static_cast<int64_t>(r), more)...};
  };
  constexpr auto kAll = std::make_index_sequence<kOutputs>();
  bool done = false;
  if constexpr (F != Format::f32 && F != Format::f16 && F != Format::bf16) {
    if (type == DType::bf16 && factors_out<F>(w)) {
      const auto row = rows_of(std::type_identity<FactoredRow<F>>(), int64_t{kOutputs}, kAll);
      const int64_t size = FactoredRow<F>::block_size(w);
      few_blocks(row.data(), size, w.cols / size, x, stride, sums);
      done = true;
    }
  }
  if (!done) {
    const bool rounds = type == DType::bf16 || is_gguf(F);
    const int64_t whole = in_lanes(w) ? w.cols - w.cols % kLanes : 0;
    auto row = rows_of(std::type_identity<WeightRow<F>>(), rounds, kAll);
    few_elements(row.data(), whole, x, stride, sums);
    few_rest(w, n, whole, x, stride, rounds, sums);
  }
  std::memcpy(all, sums, sizeof sums);
}

template <int kOutputs, int kRows>
inline void few_term_of(const WeightView& w, int64_t n, const float* x, int64_t stride, DType type,
                        Vec (&sums)[kOutputs][kRows]) {
  switch (w.format) {
    case Format::f32:
      return few_term<Format::f32>(w, n, x, stride, type, sums);
    case Format::f16:
      return few_term<Format::f16>(w, n, x, stride, type, sums);
    case Format::bf16:
      return few_term<Format::bf16>(w, n, x, stride, type, sums);
    case Format::nf4:
      return few_term<Format::nf4>(w, n, x, stride, type, sums);
    case Format::fp4:
      return few_term<Format::fp4>(w, n, x, stride, type, sums);
    case Format::int8:
      return few_term<Format::int8>(w, n, x, stride, type, sums);
    case Format::q4_0:
      return few_term<Format::q4_0>(w, n, x, stride, type, sums);
    case Format::q4_1:
      return few_term<Format::q4_1>(w, n, x, stride, type, sums);
    case Format::q8_0:
      return few_term<Format::q8_0>(w, n, x, stride, type, sums);
  }
}

inline void few_store(const GemmCall& call, int64_t m, int64_t n, float sum) {
  const GemmEpilogue& more = call.epilogue;
  if (more.bias != nullptr) sum += more.bias[n];
  if (more.residual)
    sum += more.residual.dtype == DType::f32 ? more.residual.row<float>(m)[n]
                                             : static_cast<float>(more.residual.row<bf16>(m)[n]);
  if (call.y.dtype == DType::f32)
    call.y.row<float>(m)[n] = sum;
  else
    call.y.row<bf16>(m)[n] = bf16(sum);
}

// Outputs n .. n+kOutputs of rows m .. m+kRows (those of them that y has).
template <int kOutputs, int kRows>
inline void few_outputs(const GemmCall& call, const FewRows& x, int64_t m, int64_t n) {
  Vec sums[kOutputs][kRows];
  for (auto& row : sums)
    for (Vec& s : row) s = zero();
  const float* at = x.data + m * x.stride;
  for (const GemmTerm& t : call.terms) {
    few_term_of<kOutputs, kRows>(t.w, n, at, x.stride, t.x.dtype, sums);
    at += FewRows::padded(t.x.cols);
  }
  for (int r = 0; r < kOutputs; ++r)
    for (int i = 0; i < kRows && m + i < call.y.rows; ++i) few_store(call, m + i, n + r, sum(sums[r][i]));
}

// Outputs n .. end of rows m .. m+kRows, as many side by side as there are sums for.
template <int kRows>
inline void few_columns(const GemmCall& call, const FewRows& x, int64_t m, int64_t n, int64_t end) {
  constexpr int kOutputs = kFewSums / kRows < 4 ? kFewSums / kRows : 4;
  for (; n + kOutputs <= end; n += kOutputs) few_outputs<kOutputs, kRows>(call, x, m, n);
  for (; n < end; ++n) few_outputs<1, kRows>(call, x, m, n);
}

inline void gemm_few_part(const GemmCall& call, const FewRows& x, int64_t n, int64_t end) {
  if (call.y.rows == 1) return few_columns<1>(call, x, 0, n, end);
  for (int64_t m = 0; m < call.y.rows; m += kFewRows) few_columns<kFewRows>(call, x, m, n, end);
}

// x's rows as FewRows has them.
inline void gemm_few_rows(const GemmCall& call, const FewRows& x) {
  float* to = x.data;
  for (const GemmTerm& t : call.terms) {
    const int64_t cols = t.x.cols, padded = FewRows::padded(cols);
    for (int64_t m = 0; m < FewRows::rows_of(call.y.rows); ++m) {
      float* row = to + m * x.stride;
      int64_t k = 0;
      if (m < call.y.rows) {
        if (t.x.dtype == DType::f32) {
          std::memcpy(row, t.x.row<float>(m), static_cast<size_t>(cols) * sizeof(float));
          k = cols;
        } else {
          for (const bf16* from = t.x.row<bf16>(m); k + kLanes <= cols; k += kLanes)
            store(row + k, load(from + k));
          for (; k < cols; ++k) row[k] = static_cast<float>(t.x.row<bf16>(m)[k]);
        }
      }
      for (; k < padded; ++k) row[k] = 0;
    }
    to += padded;
  }
}
