// y[m, n] is one chain of multiply-adds a lane, over the terms' columns in order (where a term's products are
// of integers, over the blocks' own sums), and then the sum of the lanes: how many rows or outputs go side by
// side changes no bit.
// After weight_row.inl and an ISA's products of integers.

// Outputs that go side by side with so many rows: two sums of each, a weight and an x fit the registers.
inline constexpr int few_side_by_side(int rows) {
  const int sums = kLanes == 16 ? 8 : 4;
  return sums / rows < 4 ? sums / rows : 4;
}

#include "kernels/gemm/few_ints.inl"

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

// Outputs n .. n+kOutputs, with the weights that gemm_nt multiplies.
template <Format F, int kOutputs, int kRows>
inline void few_decoded(const WeightView& w, int64_t n, const float* x, int64_t stride, DType type,
                        Vec (*all)[kRows]) {
  Vec sums[kOutputs][kRows];  // in registers: bytes that are read may not lie in them
  std::memcpy(sums, all, sizeof sums);
  const bool rounds = type == DType::bf16 || is_gguf(F);
  const int64_t whole = in_lanes(w) ? w.cols - w.cols % kLanes : 0;
  auto row = [&]<size_t... r>(std::index_sequence<r...>) {
    return std::array<WeightRow<F>, kOutputs>{WeightRow<F>(w, n + static_cast<int64_t>(r), rounds)...};
  }
  (std::make_index_sequence<kOutputs>());
  few_elements(row.data(), whole, x, stride, sums);
  few_rest(w, n, whole, x, stride, rounds, sums);
  std::memcpy(all, sums, sizeof sums);
}

// Whether a term's products are of integers.
template <Format F>
inline bool in_ints(const GemmTerm& t) {
  if constexpr (F == Format::f32 || F == Format::f16 || F == Format::bf16)
    return false;
  else
    return t.x.dtype == DType::bf16 && IntBlocks<F>::serves(t.w);
}

// f(std::integral_constant of the format).
template <class Function>
inline void few_dispatch(Format format, const Function& f) {
  switch (format) {
    case Format::f32:
      return f(std::integral_constant<Format, Format::f32>());
    case Format::f16:
      return f(std::integral_constant<Format, Format::f16>());
    case Format::bf16:
      return f(std::integral_constant<Format, Format::bf16>());
    case Format::nf4:
      return f(std::integral_constant<Format, Format::nf4>());
    case Format::fp4:
      return f(std::integral_constant<Format, Format::fp4>());
    case Format::int8:
      return f(std::integral_constant<Format, Format::int8>());
    case Format::q4_0:
      return f(std::integral_constant<Format, Format::q4_0>());
    case Format::q4_1:
      return f(std::integral_constant<Format, Format::q4_1>());
    case Format::q8_0:
      return f(std::integral_constant<Format, Format::q8_0>());
  }
}

// sums[r][m] += w[n + r, :] x[m, :] for some outputs.
template <int kRows>
inline void few_term(const GemmTerm& t, int64_t n, int64_t outputs, const float* x, int64_t stride,
                     Vec (*sums)[kRows]) {
  few_dispatch(t.w.format, [&](auto format) {
    constexpr Format F = format;
    constexpr int kOutputs = few_side_by_side(kRows);
    if constexpr (F != Format::f32 && F != Format::f16 && F != Format::bf16)
      if (in_ints<F>(t)) return few_ints<F, kRows>(t.w, n, outputs, x, stride, sums);
    int64_t r = 0;
    for (; r + kOutputs <= outputs; r += kOutputs)
      few_decoded<F, kOutputs, kRows>(t.w, n + r, x, stride, t.x.dtype, sums + r);
    for (; r < outputs; ++r) few_decoded<F, 1, kRows>(t.w, n + r, x, stride, t.x.dtype, sums + r);
  });
}

// y[m, n ..] of up to kLanes outputs, their sums side by side.
inline void few_store(const GemmCall& call, int64_t m, int64_t n, int64_t count, Vec sums) {
  const GemmEpilogue& more = call.epilogue;
  if (more.bias != nullptr) sums = add(sums, load_part(more.bias + n, count));
  if (more.residual)
    sums = add(sums, more.residual.dtype == DType::f32 ? load_part(more.residual.row<float>(m) + n, count)
                                                       : load_part(more.residual.row<bf16>(m) + n, count));
  if (call.y.dtype == DType::f32)
    store_part(call.y.row<float>(m) + n, sums, count);
  else
    store_part(call.y.row<bf16>(m) + n, sums, count);
}

// Outputs n .. n+outputs, kFewOutputs at most, of rows m .. m+kRows (those of them that y has).
template <int kRows>
inline void few_outputs(const GemmCall& call, const FewRows& x, int64_t m, int64_t n, int64_t outputs) {
  Vec sums[kFewOutputs][kRows];
  for (int64_t r = 0; r < ceil_div(outputs, kLanes) * kLanes; ++r)
    for (Vec& s : sums[r]) s = zero();
  const float* at = x.data + m * x.stride;
  for (const GemmTerm& t : call.terms) {
    few_term<kRows>(t, n, outputs, at, x.stride, sums);
    at += FewRows::room_of(t);
  }
  for (int64_t r = 0; r < outputs; r += kLanes)
    for (int i = 0; i < kRows && m + i < call.y.rows; ++i) {
      Vec some[kLanes];
      for (int j = 0; j < kLanes; ++j) some[j] = sums[r + j][i];
      few_store(call, m + i, n + r, outputs - r, sum_each(some));
    }
}

template <int kRows>
inline void few_columns(const GemmCall& call, const FewRows& x, int64_t m, int64_t n, int64_t end) {
  for (; n < end; n += kFewOutputs)
    few_outputs<kRows>(call, x, m, n, end - n < kFewOutputs ? end - n : kFewOutputs);
}

inline void gemm_few_part(const GemmCall& call, const FewRows& x, int64_t n, int64_t end) {
  if (call.y.rows == 1) return few_columns<1>(call, x, 0, n, end);
  for (int64_t m = 0; m < call.y.rows; m += kFewRows) few_columns<kFewRows>(call, x, m, n, end);
}

// A row of x in fp32, zeros after it to the end of its line.
inline void put_float_row(const ConstMat& x, int64_t m, float* to) {
  const int64_t cols = x.cols, padded = FewRows::padded(cols);
  int64_t k = 0;
  if (x.dtype == DType::f32) {
    std::memcpy(to, x.row<float>(m), static_cast<size_t>(cols) * sizeof(float));
    k = cols;
  } else {
    const bf16* from = x.row<bf16>(m);
    for (; k + kLanes <= cols; k += kLanes) store(to + k, load(from + k));
    for (; k < cols; ++k) to[k] = static_cast<float>(from[k]);
  }
  for (; k < padded; ++k) to[k] = 0;
}

// x's rows as FewRows has them.
inline void gemm_few_rows(const GemmCall& call, const FewRows& x) {
  float* to = x.data;
  for (const GemmTerm& t : call.terms) {
    few_dispatch(t.w.format, [&](auto format) {
      constexpr Format F = format;
      for (int64_t m = 0; m < call.y.rows; ++m) {
        if constexpr (F != Format::f32 && F != Format::f16 && F != Format::bf16)
          if (in_ints<F>(t)) {
            put_int_row<F>(t.w, t.x.row<bf16>(m), to + m * x.stride);
            continue;
          }
        put_float_row(t.x, m, to + m * x.stride);
      }
    });
    const int64_t room = FewRows::room_of(t);
    for (int64_t m = call.y.rows; m < FewRows::rows_of(call.y.rows); ++m)
      std::memset(to + m * x.stride, 0, static_cast<size_t>(room) * sizeof(float));
    to += room;
  }
}
