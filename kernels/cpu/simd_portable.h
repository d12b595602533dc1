// The portable part: four lanes in a vector type of the compiler, which maps it to what the target
// has. No fused multiply-add: on targets without one a correctly rounded fma is a library call.
// Included by kernels/cpu/simd.h only.
#pragma once

#include <bit>

namespace millrace::kernels::MILLRACE_ISA {

inline constexpr int kPartLanes = 4;
using Part = float __attribute__((vector_size(16)));
using Int4 = std::int32_t __attribute__((vector_size(16)));
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));

inline constexpr int kTileRows = 2;
inline constexpr int kTileTokens = 1;
inline constexpr int kHeadTile = 1;
inline constexpr int kHeadWide = 4;
// One token a tile: widening a 16-bit weight for every token would cost more than converting a
// panel.
inline constexpr bool kWidenInRegisters = false;

MILLRACE_ALWAYS_INLINE Part part_add(Part a, Part b) { return a + b; }
MILLRACE_ALWAYS_INLINE Part part_sub(Part a, Part b) { return a - b; }
MILLRACE_ALWAYS_INLINE Part part_mul(Part a, Part b) { return a * b; }
MILLRACE_ALWAYS_INLINE Part part_div(Part a, Part b) { return a / b; }
MILLRACE_ALWAYS_INLINE Part part_max(Part a, Part b) { return a > b ? a : b; }
MILLRACE_ALWAYS_INLINE Part part_min(Part a, Part b) { return a < b ? a : b; }
MILLRACE_ALWAYS_INLINE Part part_fma(Part a, Part b, Part c) { return a * b + c; }
MILLRACE_ALWAYS_INLINE Part part_set1(float value) { return Part{value, value, value, value}; }
MILLRACE_ALWAYS_INLINE Part part_load(const float* p) {
  Part v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
MILLRACE_ALWAYS_INLINE void part_store(float* p, Part v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes, for n below, in or above the range of a part.
MILLRACE_ALWAYS_INLINE Part part_load_n(const float* p, int n) {
  return Part{n > 0 ? p[0] : 0.0F, n > 1 ? p[1] : 0.0F, n > 2 ? p[2] : 0.0F, n > 3 ? p[3] : 0.0F};
}
MILLRACE_ALWAYS_INLINE void part_store_n(float* p, Part v, int n) {
  for (int i = 0; i < kPartLanes; ++i) {
    if (i < n) p[i] = v[i];
  }
}

// Weights lie at any byte, so 16-bit values are read with memcpy.
MILLRACE_ALWAYS_INLINE Part part_load_bf16(const std::uint16_t* p) {
  using Short4 = std::uint16_t __attribute__((vector_size(8)));
  using Uint4 = std::uint32_t __attribute__((vector_size(16)));
  Short4 bits;
  std::memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Part>(__builtin_convertvector(bits, Uint4) << 16);
}
MILLRACE_ALWAYS_INLINE Part part_load_f16(const std::uint16_t* p) {
  std::uint16_t bits[kPartLanes];
  std::memcpy(bits, p, sizeof bits);
  return Part{f16_to_f32(bits[0]), f16_to_f32(bits[1]), f16_to_f32(bits[2]), f16_to_f32(bits[3])};
}

// Part `Index` of 16 bytes as floats.
template <class Byte, int Index>
MILLRACE_ALWAYS_INLINE Part part_from_bytes(Bytes16 b) {
  typedef Byte Byte4
      __attribute__((vector_size(4)));  // NOLINT: `using` drops a dependent attribute
  Byte4 four;
  std::memcpy(&four, reinterpret_cast<const char*>(&b) + 4 * Index, sizeof four);
  return __builtin_convertvector(__builtin_convertvector(four, Int4), Part);
}
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_u8(Bytes16 b) {
  return part_from_bytes<std::uint8_t, Index>(b);
}
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_i8(Bytes16 b) {
  return part_from_bytes<std::int8_t, Index>(b);
}

// See simd_avx512.h.
MILLRACE_ALWAYS_INLINE void part_pow2(Part shifted, std::int32_t magic_bits, Part& a, Part& b) {
  const Int4 n = reinterpret_cast<Int4>(shifted) - magic_bits;
  const Int4 low = n >> 1;
  const Int4 high = n - low;
  a = reinterpret_cast<Part>((low + 127) << 23);
  b = reinterpret_cast<Part>((high + 127) << 23);
}

MILLRACE_ALWAYS_INLINE Part parts_to_4(const Part* v) { return (v[0] + v[2]) + (v[1] + v[3]); }

}  // namespace millrace::kernels::MILLRACE_ISA
