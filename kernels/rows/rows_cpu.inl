template <class X, class Y>
inline void cast_row(const X* x, Y* y, int64_t n) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store(y + c, load(x + c));
  store_part(y + c, load_part(x + c, n - c), n - c);
}

inline void cast_row_of(const ConstMat& x, const Mat& y, int64_t i) {
  if (x.dtype == DType::f32)
    cast_row(x.row<float>(i), y.row<bf16>(i), x.cols);
  else
    cast_row(x.row<bf16>(i), y.row<float>(i), x.cols);
}
