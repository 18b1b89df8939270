// y[m, n] is one chain of multiply-adds a lane, over the terms' columns in order, and then the sum of the
// lanes: how many rows or outputs go side by side changes no bit.

#include "kernels/gemm/weight_row.inl"

// Sums that go side by side: with a weight and an x they fit the registers.
inline constexpr int kFewSums = kLanes == 16 ? 16 : 8;

// sums[r][m] += w[n + r, :] x[m, :]
template <Format F, int kOutputs, int kRows>
inline void few_term(const WeightView& w, int64_t n, const float* x, int64_t stride, bool to_bf16,
                     Vec (&all)[kOutputs][kRows]) {
  WeightRow<F> row[kOutputs];
  for (int r = 0; r < kOutputs; ++r) row[r] = WeightRow<F>(w, n + r, to_bf16);
  Vec sums[kOutputs][kRows];  // in registers: bytes that are read may not lie in them
  std::memcpy(sums, all, sizeof sums);
  const auto multiply = [&](int r, int64_t k, Vec weight) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sums[r][m] = fma(weight, load(x + m * stride + k), sums[r][m]);
  };
  const int64_t whole = in_lanes(w) ? w.cols - w.cols % kLanes : 0;
  int64_t k = 0;
  while (k < whole) {
    int64_t end = whole;
    for (int r = 0; r < kOutputs; ++r) {
      const int64_t left = row[r].block(k);
      if (left < end - k) end = k + left;
    }
    for (; k < end; k += kLanes)
#pragma GCC unroll 4
      for (int r = 0; r < kOutputs; ++r) multiply(r, k, row[r].at(k));
  }
  for (; k < w.cols; k += kLanes)
    for (int r = 0; r < kOutputs; ++r)
      multiply(r, k, decode_part(w, n + r, k, w.cols - k < kLanes ? w.cols - k : kLanes, to_bf16));
  std::memcpy(all, sums, sizeof sums);
}

template <int kOutputs, int kRows>
inline void few_term_of(const WeightView& w, int64_t n, const float* x, int64_t stride, bool to_bf16,
                        Vec (&sums)[kOutputs][kRows]) {
  switch (w.format) {
    case Format::f32:
      return few_term<Format::f32>(w, n, x, stride, to_bf16, sums);
    case Format::f16:
      return few_term<Format::f16>(w, n, x, stride, to_bf16, sums);
    case Format::bf16:
      return few_term<Format::bf16>(w, n, x, stride, to_bf16, sums);
    case Format::nf4:
      return few_term<Format::nf4>(w, n, x, stride, to_bf16, sums);
    case Format::fp4:
      return few_term<Format::fp4>(w, n, x, stride, to_bf16, sums);
    case Format::int8:
      return few_term<Format::int8>(w, n, x, stride, to_bf16, sums);
    case Format::q4_0:
      return few_term<Format::q4_0>(w, n, x, stride, to_bf16, sums);
    case Format::q4_1:
      return few_term<Format::q4_1>(w, n, x, stride, to_bf16, sums);
    case Format::q8_0:
      return few_term<Format::q8_0>(w, n, x, stride, to_bf16, sums);
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
    few_term_of<kOutputs, kRows>(t.w, n, at, x.stride, t.x.dtype == DType::bf16 || is_gguf(t.w.format), sums);
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
  const int64_t M = call.y.rows;
  for (int64_t m = 0; m < M;) {
    const int64_t left = M - m;
    if (left == 1) {
      few_columns<1>(call, x, m, n, end);
      m += 1;
    } else if (left <= 4) {
      few_columns<4>(call, x, m, n, end);
      m += 4;
    } else if (left <= 8 || kFewSums < 16) {
      few_columns<8>(call, x, m, n, end);
      m += 8;
    } else {
      few_columns<kFewSums>(call, x, m, n, end);
      m += kFewSums;
    }
  }
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
