// A row's scores: capped logits, or the logits themselves.
struct CrossEntropyScores {
  const float* row;
  float softcap;  // 0: none
  Vec cap(Vec x) const { return softcap > 0 ? mul(set1(softcap), tanh(div(x, set1(softcap)))) : x; }
  Vec at(int64_t j) const { return cap(load(row + j)); }
  Vec part_at(int64_t j, int64_t n) const { return cap(load_part(row + j, n)); }
};

inline float cross_entropy_max(const CrossEntropyScores& s, int64_t begin, int64_t end) {
  const Vec least = set1(-__builtin_inff());
  Vec m0 = least, m1 = least;
  int64_t j = begin;
  for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
    m0 = max(m0, s.at(j));
    m1 = max(m1, s.at(j + kLanes));
  }
  for (; j < end; j += kLanes) {
    const int64_t n = end - j;
    m0 = max(m0, n >= kLanes ? s.at(j) : select_range(s.part_at(j, n), 0, n, least));
  }
  return max_lane(max(m0, m1));
}

// sum of exp(score - top). Blocks are summed in double: a vocabulary is long for one lane of fp32.
inline double cross_entropy_sum(const CrossEntropyScores& s, int64_t count, float top) {
  constexpr int64_t kBlock = 1024;
  const Vec t = set1(top);
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    Vec s0 = zero(), s1 = zero();
    int64_t j = begin;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
      s0 = add(s0, exp(sub(s.at(j), t)));
      s1 = add(s1, exp(sub(s.at(j + kLanes), t)));
    }
    for (; j < end; j += kLanes) {
      const int64_t n = end - j;
      const Vec p = exp(sub(n >= kLanes ? s.at(j) : s.part_at(j, n), t));
      s0 = add(s0, n >= kLanes ? p : select_range(p, 0, n, zero()));
    }
    total += static_cast<double>(sum(add(s0, s1)));
  }
  return total;
}

// softmax * grad_scale, times the cap's slope 1 - (score / softcap)^2.
inline Vec cross_entropy_slope(const CrossEntropyScores& s, Vec score, Vec top, Vec factor) {
  const Vec g = mul(exp(sub(score, top)), factor);
  if (s.softcap <= 0) return g;
  const Vec t = div(score, set1(s.softcap));
  return mul(g, sub(set1(1.f), mul(t, t)));
}

// Writes behind what it reads: out may be the scores' own row.
template <class T>
inline void cross_entropy_gradient(const CrossEntropyScores& s, T* out, int64_t count, int64_t label,
                                   float top, double total, float grad_scale) {
  const Vec t = set1(top), factor = set1(static_cast<float>(grad_scale / total));
  // (p - 1) from p's own factor: 1 is subtracted before the scale, so that a sure label's gradient does not
  // lose p in the rounding.
  const float score = cross_entropy_max(s, label, label + 1);
  const double p = std::exp(static_cast<double>(score) - top) / total;
  double at_label = (p - 1.) * grad_scale;
  if (s.softcap > 0) {
    const double cap = static_cast<double>(score) / s.softcap;
    at_label *= 1. - cap * cap;
  }
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) store(out + j, cross_entropy_slope(s, s.at(j), t, factor));
  if (const int64_t n = count - j; n > 0)
    store_part(out + j, cross_entropy_slope(s, s.part_at(j, n), t, factor), n);
  out[label] = T(static_cast<float>(at_label));
}

inline void cross_entropy_rows(const CrossEntropyArgs& a, int64_t begin, int64_t end) {
  const int64_t count = a.logits.cols;
  for (int64_t i = begin; i < end; ++i) {
    const float* row = a.logits.row<float>(i);
    const int64_t label = a.labels[i];
    const CrossEntropyScores s{row, a.softcap};
    const float before = cross_entropy_max(s, 0, label);
    const float at = cross_entropy_max(s, label, label + 1);
    const float after = cross_entropy_max(s, label + 1, count);
    const float others = before > after ? before : after;
    const float top = at > others ? at : others;
    const double total = cross_entropy_sum(s, count, top);
    a.loss[i] = static_cast<float>(std::log(total) + (static_cast<double>(top) - at));
    a.hit[i] = at > before && at >= after;
    if (a.gradient && a.gradient.dtype == DType::bf16)
      cross_entropy_gradient(s, a.gradient.row<bf16>(i), count, label, top, total, a.grad_scale);
    else if (a.gradient)
      cross_entropy_gradient(s, a.gradient.row<float>(i), count, label, top, total, a.grad_scale);
  }
}
