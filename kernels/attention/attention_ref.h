#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"

namespace qlora::ref {

// The definition, one document: q, o [queries, q_heads * head_dim], k, v [keys, kv_heads * head_dim], p
// [q_heads, queries, keys] (0 where not seen), lse [q_heads, queries].
template <class T>
T attention_score(const AttentionShape& s, const T* q, const T* k) {
  using std::tanh;
  T x = T(0);
  for (int c = 0; c < s.head_dim; ++c) x += q[c] * k[c];
  x = x * T(static_cast<double>(s.scale));
  if (s.softcap > 0) {
    const T cap = T(static_cast<double>(s.softcap));
    x = cap * tanh(x / cap);
  }
  return x;
}

// Keys [first, last] that query i sees.
inline int64_t attention_last(int64_t i, int64_t queries, int64_t keys) { return i + keys - queries; }
inline int64_t attention_first(const AttentionShape& s, int64_t last) {
  return s.window > 0 ? std::max<int64_t>(0, last - s.window + 1) : 0;
}

template <class T>
void attention_forward(const AttentionShape& s, int64_t queries, int64_t keys, const T* q, const T* k,
                       const T* v, T* o, T* p, T* lse) {
  using std::exp;
  using std::log;
  const int64_t dim = s.head_dim, q_row = s.q_heads * dim, k_row = s.kv_heads * dim;
  for (int64_t h = 0; h < s.q_heads; ++h)
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t g = h / (s.q_heads / s.kv_heads), last = attention_last(i, queries, keys);
      const int64_t first = attention_first(s, last);
      T* pi = p + (h * queries + i) * keys;
      T* oi = o + i * q_row + h * dim;
      std::fill(pi, pi + keys, T(0));
      std::fill(oi, oi + dim, T(0));
      T top = T(-1e300), total = T(0);
      for (int64_t j = first; j <= last; ++j) {
        pi[j] = attention_score(s, q + i * q_row + h * dim, k + j * k_row + g * dim);
        if (pi[j] > top) top = pi[j];
      }
      for (int64_t j = first; j <= last; ++j) total += pi[j] = exp(pi[j] - top);
      for (int64_t j = first; j <= last; ++j) {
        pi[j] = pi[j] / total;
        for (int64_t c = 0; c < dim; ++c) oi[c] += pi[j] * v[j * k_row + g * dim + c];
      }
      lse[h * queries + i] = top + log(total);
    }
}

// dq, dk, dv =
template <class T>
void attention_backward(const AttentionShape& s, int64_t queries, int64_t keys, const T* d_o, const T* q,
                        const T* k, const T* v, const T* p, T* dq, T* dk, T* dv) {
  const int64_t dim = s.head_dim, q_row = s.q_heads * dim, k_row = s.kv_heads * dim;
  std::fill(dq, dq + queries * q_row, T(0));
  std::fill(dk, dk + keys * k_row, T(0));
  std::fill(dv, dv + keys * k_row, T(0));
  std::vector<T> dp(static_cast<size_t>(keys));
  for (int64_t h = 0; h < s.q_heads; ++h)
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t g = h / (s.q_heads / s.kv_heads), last = attention_last(i, queries, keys);
      const int64_t first = attention_first(s, last);
      const T* pi = p + (h * queries + i) * keys;
      const T* d_oi = d_o + i * q_row + h * dim;
      T mean = T(0);
      for (int64_t j = first; j <= last; ++j) {
        dp[j] = T(0);
        for (int64_t c = 0; c < dim; ++c) {
          dp[j] += d_oi[c] * v[j * k_row + g * dim + c];
          dv[j * k_row + g * dim + c] += pi[j] * d_oi[c];
        }
        mean += dp[j] * pi[j];
      }
      for (int64_t j = first; j <= last; ++j) {
        T ds = pi[j] * (dp[j] - mean);
        if (s.softcap > 0) {
          const T t = attention_score(s, q + i * q_row + h * dim, k + j * k_row + g * dim) /
                      T(static_cast<double>(s.softcap));
          ds = ds * (T(1) - t * t);
        }
        ds = ds * T(static_cast<double>(s.scale));
        for (int64_t c = 0; c < dim; ++c) {
          dq[i * q_row + h * dim + c] += ds * k[j * k_row + g * dim + c];
          dk[j * k_row + g * dim + c] += ds * q[i * q_row + h * dim + c];
        }
      }
    }
}

}  // namespace qlora::ref
