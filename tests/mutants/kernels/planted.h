#pragma once
#include <cstdlib>

// QLORA_PLANTED(n): one more or one less, or yes, where the environment's QLORA_PLANTED is n; else x + QLORA_PLANTED(n)
// and the like are x, to the bit (0 + x is not, where x is -0).
namespace qlora {

inline const int planted = std::getenv("QLORA_PLANTED") != nullptr ? std::atoi(std::getenv("QLORA_PLANTED")) : 0;

struct Planted {
  int by;
  explicit operator bool() const { return by != 0; }
  Planted operator-() const { return {-by}; }
};
template <class T>
auto operator+(T x, Planted p) -> decltype(x + 1) {
  return p.by != 0 ? x + p.by : x;
}
template <class T>
auto operator+(Planted p, T x) -> decltype(x + 1) {
  return x + p;
}
template <class T>
auto operator-(T x, Planted p) -> decltype(x - 1) {
  return x + -p;
}
inline int operator*(int x, Planted p) { return x * p.by; }

}  // namespace qlora

#define QLORA_PLANTED(n) \
  ::qlora::Planted { ::qlora::planted == (n) ? 1 : 0 }
