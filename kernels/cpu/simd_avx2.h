// The avx2 part: lanes 0-7 and 8-15 in two ymm registers. Included by kernels/cpu/simd.h only.
#pragma once

#include <immintrin.h>

namespace millrace::kernels::MILLRACE_ISA {

inline constexpr int kPartLanes = 8;
using Part = __m256;
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));

// Tile of gemm: 2 x 3 accumulators of two registers, two half weights and one half activation are
// 15 of 16 registers.
inline constexpr int kTileRows = 2;
inline constexpr int kTileTokens = 3;
// Heads that attention runs together, and vectors of components: 4 x 1 accumulators of two
// registers are as many as there are FMAs under way.
inline constexpr int kHeadTile = 4;
inline constexpr int kHeadWide = 1;
// gemm widens 16-bit weights as it reads them, for however many tokens.
inline constexpr bool kWidenInRegisters = true;

MILLRACE_ALWAYS_INLINE Part part_add(Part a, Part b) { return _mm256_add_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_sub(Part a, Part b) { return _mm256_sub_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_mul(Part a, Part b) { return _mm256_mul_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_div(Part a, Part b) { return _mm256_div_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_max(Part a, Part b) { return _mm256_max_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_min(Part a, Part b) { return _mm256_min_ps(a, b); }
MILLRACE_ALWAYS_INLINE Part part_fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
MILLRACE_ALWAYS_INLINE Part part_set1(float value) { return _mm256_set1_ps(value); }
MILLRACE_ALWAYS_INLINE Part part_load(const float* p) { return _mm256_loadu_ps(p); }
MILLRACE_ALWAYS_INLINE void part_store(float* p, Part v) { _mm256_storeu_ps(p, v); }

// The first n lanes, for n below, in or above the range of a part.
MILLRACE_ALWAYS_INLINE __m256i part_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MILLRACE_ALWAYS_INLINE Part part_load_n(const float* p, int n) {
  return _mm256_maskload_ps(p, part_mask(n));
}
MILLRACE_ALWAYS_INLINE void part_store_n(float* p, Part v, int n) {
  _mm256_maskstore_ps(p, part_mask(n), v);
}

MILLRACE_ALWAYS_INLINE Part part_load_bf16(const std::uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
MILLRACE_ALWAYS_INLINE Part part_load_f16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Part `Index` of 16 bytes as floats.
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_u8(Bytes16 b) {
  const __m128i half = _mm_bsrli_si128(reinterpret_cast<__m128i>(b), 8 * Index);
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(half));
}
template <int Index>
MILLRACE_ALWAYS_INLINE Part part_from_i8(Bytes16 b) {
  const __m128i half = _mm_bsrli_si128(reinterpret_cast<__m128i>(b), 8 * Index);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half));
}

// See simd_avx512.h.
MILLRACE_ALWAYS_INLINE void part_pow2(Part shifted, std::int32_t magic_bits, Part& a, Part& b) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(magic_bits));
  const __m256i low = _mm256_srai_epi32(n, 1);
  const __m256i high = _mm256_sub_epi32(n, low);
  const __m256i one = _mm256_set1_epi32(127);
  a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(low, one), 23));
  b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(high, one), 23));
}

MILLRACE_ALWAYS_INLINE __m128 parts_to_4(const Part* v) {
  const __m256 s8 = _mm256_add_ps(v[0], v[1]);
  return _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
}

}  // namespace millrace::kernels::MILLRACE_ISA
