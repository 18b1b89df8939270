#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "memory/error.h"

namespace qlora {

// Element types of files and of matrices. fp16 is read and written but is no compute type yet.
enum class DType : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

inline constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
    case DType::u64:
      return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  return 0;
}

// torch's names ("float32", "bfloat16"), as config.json and quant_state have them.
std::string_view name_of(DType t);

// bfloat16: the upper half of an fp32.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  // Round to nearest, ties to even; NaN stays NaN.
  explicit bf16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<uint16_t>((u >> 16) | 0x40u);
    else
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE binary16.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float f);            // round to nearest, ties to even
  explicit operator float() const;  // exact
};

inline float round_to(DType t, float f) {
  if (t == DType::bf16) return static_cast<float>(bf16(f));
  if (t == DType::f16) return static_cast<float>(f16(f));
  return f;
}

template <class T>
struct dtype_of_type;
template <>
struct dtype_of_type<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of_type<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of_type<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of_type<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of_type<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of_type<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of_type<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct dtype_of_type<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <class T>
inline constexpr DType dtype_of = dtype_of_type<T>::value;

}  // namespace qlora
