// Element types of device memory as plain structs, so that host code can name them without any CUDA
// header. Inside .cu files the same memory is seen as __nv_bfloat16 and __nv_fp8_storage_t
// (kernels/cuda/launch.cuh has the casts). Conversions here are for the host.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/dtype.h"

namespace millrace::kernels::cuda {

struct BFloat16 {
  std::uint16_t bits = 0;
  friend bool operator==(BFloat16, BFloat16) = default;
};

// 8-bit float of the OCP specification, 4 exponent bits (bias 7) and 3 of mantissa: no infinity,
// one NaN per sign (0x7f), largest finite value 448, smallest subnormal 2^-9.
struct Fp8E4M3 {
  std::uint8_t bits = 0;
  friend bool operator==(Fp8E4M3, Fp8E4M3) = default;
};

static_assert(sizeof(BFloat16) == 2 && sizeof(Fp8E4M3) == 1);

inline constexpr float kFp8E4M3Max = 448.0F;

// Round to nearest, ties to even, as the device does.
inline BFloat16 to_bf16(float value) { return {f32_to_bf16(value)}; }
inline float to_f32(BFloat16 value) { return bf16_to_f32(value.bits); }

// Round to nearest, ties to even. Beyond +-448, infinities included, the result is +-448
// ("satfinite"); NaN becomes 0x7f.
inline Fp8E4M3 to_e4m3(float value) {
  if (std::isnan(value)) return {0x7f};
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float size = std::fabs(value);
  if (size >= kFp8E4M3Max) return {static_cast<std::uint8_t>(sign | 0x7e)};
  // One unit in the last place: 2^-9 for subnormals, 2^(exponent - 3) above.
  const int exponent = size < 0x1p-6F ? -6 : std::ilogb(size);
  // 0..16 units, where 8 has the implicit bit and 16 is the next exponent.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  const int bits = ((exponent + 7 - 1) << 3) + units;
  return {static_cast<std::uint8_t>(sign | (bits > 0x7e ? 0x7e : bits))};
}

inline float to_f32(Fp8E4M3 value) {
  const int exponent = (value.bits >> 3) & 15;
  const int mantissa = value.bits & 7;
  float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                             : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((value.bits & 0x7f) == 0x7f) size = std::bit_cast<float>(0x7fc00000U);
  return (value.bits & 0x80) != 0 ? -size : size;
}

}  // namespace millrace::kernels::cuda
