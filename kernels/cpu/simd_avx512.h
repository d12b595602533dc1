// The avx512 part: all 16 lanes in one zmm register. Included by kernels/cpu/simd.h only.
#pragma once

#include <immintrin.h>

namespace millrace::kernels::MILLRACE_ISA {

inline constexpr int kPartLanes = 16;
using Part = __m512;
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));

// Tile of gemm: 4 x 6 accumulators, 4 weights and one activation are 29 of 32 registers.
inline constexpr int kTileRows = 4;
inline constexpr int kTileTokens = 6;
// Heads that attention runs together, and vectors of components: 4 x 4 accumulators.
inline constexpr int kHeadTile = 4;
inline constexpr int kHeadWide = 4;
// gemm widens 16-bit weights as it reads them, for however many tokens.
inline constexpr bool kWidenInRegisters = true;

MILLRACE_ALWAYS_INLINE Part part_add(Part a, Part b) { return _mm512_add_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_sub(Part a, Part b) { return _mm512_sub_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_mul(Part a, Part b) { return _mm512_mul_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_div(Part a, Part b) { return _mm512_div_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_max(Part a, Part b) { return _mm512_max_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_min(Part a, Part b) { return _mm512_min_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
MILLRACE_ALWAYS_INLINE Part part_set1(float value) { return _mm512_set1_ps(value); }
MILLRACE_ALWAYS_INLINE Part part_load(const float* p) { return _mm512_loadu_ps(p); }
MILLRACE_ALWAYS_INLINE void part_store(float* p, Part v) { _mm512_storeu_ps(p, v); }

// The first n lanes, for n below, in or above the range of a part.
MILLRACE_ALWAYS_INLINE __mmask16 part_mask(int n) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(n), lane);
}
MILLRACE_ALWAYS_INLINE Part part_load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(part_mask(n), p);
}
MILLRACE_ALWAYS_INLINE void part_store_n(float* p, Part v, int n) {
  _mm512_mask_storeu_ps(p, part_mask(n), v);
}

MILLRACE_ALWAYS_INLINE Part part_load_bf16(const std::uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
MILLRACE_ALWAYS_INLINE Part part_load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Part `Index` of 16 bytes as floats.
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_u8(Bytes16 b) {
  static_assert(Index == 0);
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(b)));
}
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_i8(Bytes16 b) {
  static_assert(Index == 0);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(b)));
}

// 2^n for the integer n in the low bits of `shifted` = n + magic, less `magic`'s bits, split in two
// factors 2^(n >> 1) and 2^(n - (n >> 1)) so that neither overflows.
MILLRACE_ALWAYS_INLINE void part_pow2(Part shifted, std::int32_t magic_bits, Part& a, Part& b) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(magic_bits));
  const __m512i low = _mm512_srai_epi32(n, 1);
  const __m512i high = _mm512_sub_epi32(n, low);
  const __m512i one = _mm512_set1_epi32(127);
  a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(low, one), 23));
  b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(high, one), 23));
}

MILLRACE_ALWAYS_INLINE __m128 parts_to_4(const Part* v) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
  return _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
}

}  // namespace millrace::kernels::MILLRACE_ISA
