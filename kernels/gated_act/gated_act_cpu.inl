// Both activations are x * s with a sigmoid s: of x for silu; of 2u for gelu, since (1 + tanh u) / 2 = s(2u),
// which keeps its relative precision where 1 + tanh cancels.
inline Vec gated_act_gate(Activation act, Vec x) {
  if (act == Activation::silu) return sigmoid(x);
  const Vec cubic = fma(mul(set1(0.044715f), mul(x, x)), x, x);
  return sigmoid(mul(set1(2 * 0.79788456f), cubic));
}

// Derivative of x * s(x), given s.
inline Vec gated_act_slope(Activation act, Vec x, Vec s) {
  const Vec rest = mul(x, sub(set1(1.f), s));
  if (act == Activation::silu) return fma(s, rest, s);
  const Vec inner = fma(set1(3 * 0.044715f), mul(x, x), set1(1.f));
  return fma(s, mul(rest, mul(set1(2 * 0.79788456f), inner)), s);
}

template <class T>
inline void gated_act_forward_row(const GatedAct& a, int64_t row) {
  const T* gate = a.gate.row<T>(row);
  const T* up = a.up.row<T>(row);
  T* h = a.out0.row<T>(row);
  int64_t j = 0;
  for (; j + kLanes <= a.gate.cols; j += kLanes) {
    for (const T* const p : {gate, up, static_cast<const T*>(h)}) fetch_ahead(p + j);
    const Vec g = load(gate + j);
    store(h + j, mul(mul(g, gated_act_gate(a.act, g)), load(up + j)));
  }
  if (const int64_t n = a.gate.cols - j; n > 0) {
    const Vec g = load_part(gate + j, n);
    store_part(h + j, mul(mul(g, gated_act_gate(a.act, g)), load_part(up + j, n)), n);
  }
}

inline void gated_act_forward_rows(const GatedAct& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (a.gate.dtype == DType::bf16)
      gated_act_forward_row<bf16>(a, i);
    else
      gated_act_forward_row<float>(a, i);
  }
}

template <class T>
inline void gated_act_backward_row(const GatedAct& a, int64_t row) {
  const T* d_h = a.d_h.row<T>(row);
  const T* gate = a.gate.row<T>(row);
  const T* up = a.up.row<T>(row);
  T* d_gate = a.out0.row<T>(row);
  T* d_up = a.out1.row<T>(row);
  int64_t j = 0;
  for (; j + kLanes <= a.gate.cols; j += kLanes) {
    for (const T* const p : {d_h, gate, up, static_cast<const T*>(d_gate), static_cast<const T*>(d_up)})
      fetch_ahead(p + j);
    const Vec d = load(d_h + j), g = load(gate + j), u = load(up + j);
    const Vec s = gated_act_gate(a.act, g);
    store(d_gate + j, mul(mul(d, u), gated_act_slope(a.act, g, s)));
    store(d_up + j, mul(d, mul(g, s)));
  }
  if (const int64_t n = a.gate.cols - j; n > 0) {
    const Vec d = load_part(d_h + j, n), g = load_part(gate + j, n), u = load_part(up + j, n);
    const Vec s = gated_act_gate(a.act, g);
    store_part(d_gate + j, mul(mul(d, u), gated_act_slope(a.act, g, s)), n);
    store_part(d_up + j, mul(d, mul(g, s)), n);
  }
}

inline void gated_act_backward_rows(const GatedAct& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (a.gate.dtype == DType::bf16)
      gated_act_backward_row<bf16>(a, i);
    else
      gated_act_backward_row<float>(a, i);
  }
}
