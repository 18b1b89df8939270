#pragma once
#include <cmath>

namespace qlora::testing {

// A number and its derivative in one direction (forward mode): run a reference on these and its derivative is
// exact to rounding, where finite differences lose half of the digits. Branches compare values only.
struct Dual {
  double v = 0, d = 0;
  Dual() = default;
  explicit Dual(double value, double derivative = 0) : v(value), d(derivative) {}
  Dual& operator+=(Dual o) { return *this = Dual(v + o.v, d + o.d); }
  Dual& operator-=(Dual o) { return *this = Dual(v - o.v, d - o.d); }
  Dual& operator*=(Dual o) { return *this = Dual(v * o.v, d * o.v + v * o.d); }
  friend Dual operator+(Dual a, Dual b) { return a += b; }
  friend Dual operator-(Dual a, Dual b) { return a -= b; }
  friend Dual operator-(Dual a) { return Dual(-a.v, -a.d); }
  friend Dual operator*(Dual a, Dual b) { return a *= b; }
  friend Dual operator/(Dual a, Dual b) { return Dual(a.v / b.v, (a.d * b.v - a.v * b.d) / (b.v * b.v)); }
  friend bool operator<(Dual a, Dual b) { return a.v < b.v; }
  friend bool operator>(Dual a, Dual b) { return a.v > b.v; }
};

inline Dual exp(Dual a) { return Dual(std::exp(a.v), std::exp(a.v) * a.d); }
inline Dual log(Dual a) { return Dual(std::log(a.v), a.d / a.v); }
inline Dual sqrt(Dual a) { return Dual(std::sqrt(a.v), a.d / (2 * std::sqrt(a.v))); }
inline Dual tanh(Dual a) {
  const double t = std::tanh(a.v);
  return Dual(t, (1 - t * t) * a.d);
}

}  // namespace qlora::testing
