#pragma once
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <iterator>

namespace qlora {

// Equal byte for byte (-0.0 is not 0.0); names the first element that differs.
template <class A, class B>
::testing::AssertionResult same_bits(const A& actual, const B& expected) {
  if (std::size(actual) != std::size(expected))
    return ::testing::AssertionFailure() << std::size(actual) << " elements, not " << std::size(expected);
  using T = std::remove_cvref_t<decltype(*std::data(actual))>;
  static_assert(std::is_same_v<T, std::remove_cvref_t<decltype(*std::data(expected))>>);
  for (size_t i = 0; i < std::size(actual); ++i)
    if (std::memcmp(std::data(actual) + i, std::data(expected) + i, sizeof(T)) != 0)
      return ::testing::AssertionFailure()
             << "element " << i << " is " << +std::data(actual)[i] << ", not " << +std::data(expected)[i];
  return ::testing::AssertionSuccess();
}

// How many representable numbers lie between two finite fp32.
inline int64_t ulps_apart(float a, float b) {
  const auto ordered = [](float f) {
    const auto u = std::bit_cast<int32_t>(f);
    return u < 0 ? -static_cast<int64_t>(u & 0x7fffffff) : static_cast<int64_t>(u);
  };
  const int64_t d = ordered(a) - ordered(b);
  return d < 0 ? -d : d;
}

}  // namespace qlora
