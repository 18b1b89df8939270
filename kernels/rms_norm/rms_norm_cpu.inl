// sum over the row of term(column, lanes), in four partial sums so that the adds overlap.
template <class Term>
inline float rms_norm_sum(int64_t cols, const Term& term) {
  Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
  int64_t j = 0;
  for (; j + 4 * kLanes <= cols; j += 4 * kLanes) {
    s0 = term.add_to(s0, j);
    s1 = term.add_to(s1, j + kLanes);
    s2 = term.add_to(s2, j + 2 * kLanes);
    s3 = term.add_to(s3, j + 3 * kLanes);
  }
  for (; j + kLanes <= cols; j += kLanes) s0 = term.add_to(s0, j);
  if (j < cols) s1 = term.add_part_to(s1, j, cols - j);
  return sum(add(add(s0, s1), add(s2, s3)));
}

template <class TX>
struct RmsSquare {
  const TX* x;
  Vec add_to(Vec s, int64_t j) const {
    fetch_ahead(x + j);
    const Vec v = load(x + j);
    return fma(v, v, s);
  }
  Vec add_part_to(Vec s, int64_t j, int64_t n) const {
    const Vec v = load_part(x + j, n);
    return fma(v, v, s);
  }
};

template <class TX, class TY>
inline void rms_norm_forward_row(const RmsNormForward& a, int64_t row) {
  const TX* x = a.x.row<TX>(row);
  TY* y = a.y.row<TY>(row);
  const int64_t cols = a.x.cols;
  const float squares = rms_norm_sum(cols, RmsSquare<TX>{x});
  const float rstd = 1.f / std::sqrt(squares / static_cast<float>(cols) + a.eps);
  if (a.rstd != nullptr) a.rstd[row] = rstd;
  const Vec r = set1(rstd), offset = set1(a.offset);
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    fetch_ahead(y + j);
    store(y + j, mul(mul(load(x + j), r), add(offset, load(a.w + j))));
  }
  if (j < cols) {
    const int64_t n = cols - j;
    store_part(y + j, mul(mul(load_part(x + j, n), r), add(offset, load_part(a.w + j, n))), n);
  }
}

inline void rms_norm_forward_rows(const RmsNormForward& a, int64_t begin, int64_t end) {
  const bool x16 = a.x.dtype == DType::bf16, y16 = a.y.dtype == DType::bf16;
  for (int64_t i = begin; i < end; ++i) {
    if (x16 && y16) rms_norm_forward_row<bf16, bf16>(a, i);
    if (x16 && !y16) rms_norm_forward_row<bf16, float>(a, i);
    if (!x16 && y16) rms_norm_forward_row<float, bf16>(a, i);
    if (!x16 && !y16) rms_norm_forward_row<float, float>(a, i);
  }
}

template <class TD, class TX>
struct RmsDot {
  const TD* dy;
  const TX* x;
  const float* w;
  Vec offset;
  Vec add_to(Vec s, int64_t j) const {
    fetch_ahead(dy + j);
    fetch_ahead(x + j);
    return fma(mul(load(dy + j), add(offset, load(w + j))), load(x + j), s);
  }
  Vec add_part_to(Vec s, int64_t j, int64_t n) const {
    return fma(mul(load_part(dy + j, n), add(offset, load_part(w + j, n))), load_part(x + j, n), s);
  }
};

template <class TD, class TX, class TG>
inline void rms_norm_backward_row(const RmsNormBackward& a, int64_t row) {
  const TD* dy = a.dy.row<TD>(row);
  const TX* x = a.x.row<TX>(row);
  TG* dx = a.dx.row<TG>(row);
  const int64_t cols = a.x.cols;
  const Vec offset = set1(a.offset);
  const float rstd = a.rstd[row];
  const float dot = rms_norm_sum(cols, RmsDot<TD, TX>{dy, x, a.w, offset});
  const Vec r = set1(rstd), k = set1(-dot * rstd * rstd * rstd / static_cast<float>(cols));
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    fetch_ahead(dx + j);
    const Vec g = mul(mul(load(dy + j), add(offset, load(a.w + j))), r);
    store(dx + j, add(load(dx + j), fma(load(x + j), k, g)));
  }
  if (j < cols) {
    const int64_t n = cols - j;
    const Vec g = mul(mul(load_part(dy + j, n), add(offset, load_part(a.w + j, n))), r);
    store_part(dx + j, add(load_part(dx + j, n), fma(load_part(x + j, n), k, g)), n);
  }
}

template <class TD, class TX>
inline void rms_norm_backward_to(const RmsNormBackward& a, int64_t row) {
  if (a.dx.dtype == DType::bf16)
    rms_norm_backward_row<TD, TX, bf16>(a, row);
  else
    rms_norm_backward_row<TD, TX, float>(a, row);
}

inline void rms_norm_backward_rows(const RmsNormBackward& a, int64_t begin, int64_t end) {
  const bool d16 = a.dy.dtype == DType::bf16, x16 = a.x.dtype == DType::bf16;
  for (int64_t i = begin; i < end; ++i) {
    if (d16 && x16) rms_norm_backward_to<bf16, bf16>(a, i);
    if (d16 && !x16) rms_norm_backward_to<bf16, float>(a, i);
    if (!d16 && x16) rms_norm_backward_to<float, bf16>(a, i);
    if (!d16 && !x16) rms_norm_backward_to<float, float>(a, i);
  }
}
