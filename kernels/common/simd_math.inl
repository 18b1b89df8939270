// Transcendentals over Vec, one definition for every ISA. Coefficients of exp: Cephes expf (Moshier).

// exp(x) to about 1 ulp: x = n ln2 + r, |r| <= ln2/2, a degree-6 minimax polynomial in r. x above 88.37 gives
// the largest finite result, x below -87.3 gives 2^-126; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec low = set1(-87.33654f), high = set1(88.37626f);
  const Vec clamped = min(high, max(low, x));
  const Vec n = round_even(mul(clamped, set1(1.44269504f)));
  Vec r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  const Vec e = add(fma(p, mul(r, r), r), set1(1.f));
  return times_exp2(e, n);
}

// 2^x to about 1 ulp, the coefficients those of Cephes exp2f (Moshier). x above 127 gives 2^127 or more, x
// below -126 gives 2^-126 or less; NaN stays NaN.
inline Vec exp2(Vec x) {
  const auto [whole, r] = whole_and_rest(x);
  Vec p = set1(1.535336188319500e-4f);
  p = fma(p, r, set1(1.339887440266574e-3f));
  p = fma(p, r, set1(9.618437357674640e-3f));
  p = fma(p, r, set1(5.550332471162809e-2f));
  p = fma(p, r, set1(2.402264791363012e-1f));
  p = fma(p, r, set1(6.931472028550421e-1f));
  return times_exp2(fma(p, r, set1(1.f)), whole);
}

// 1 / (1 + exp(-x))
inline Vec sigmoid(Vec x) { return div(set1(1.f), add(set1(1.f), exp(sub(zero(), x)))); }

// tanh(x) = 1 - 2 / (exp(2x) + 1): absolute error about 1e-7, which is what gelu's 1 + tanh needs.
inline Vec tanh(Vec x) { return sub(set1(1.f), div(set1(2.f), add(exp(add(x, x)), set1(1.f)))); }
