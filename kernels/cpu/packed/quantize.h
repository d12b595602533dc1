// Activations to 8 bits, by the definition in kernels/packed_gemm.h.
#pragma once

#include <limits>

#include "kernels/cpu/packed/dots.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels::MILLRACE_ISA {

// Of the two halves of a block.
struct HalfSums {
  std::int32_t low = 0;
  std::int32_t high = 0;
};

#if defined(__AVX2__)

// The largest magnitude of 32 values; anything but a number is above all numbers, because the
// comparison is of integers.
MILLRACE_ALWAYS_INLINE float largest_magnitude(const float* x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const auto load8 = [&](int i) __attribute__((always_inline)) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)), mask);
  };
  const __m256i m8 = _mm256_max_epi32(_mm256_max_epi32(load8(0), load8(8)),
                                      _mm256_max_epi32(load8(16), load8(24)));
  __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4e));
  m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xb1));
  return __builtin_bit_cast(float, _mm_cvtsi128_si32(m4));
}

// q = round(x * inverse), and the sums of q.
MILLRACE_ALWAYS_INLINE HalfSums round_block(const float* x, float inverse, std::int8_t* q) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const auto round8 = [&](int i) __attribute__((always_inline)) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
  };
  // Packing works within 128-bit halves: it leaves groups of four in the order 0 2 4 6 1 3 5 7.
  const __m256i low = _mm256_packs_epi32(round8(0), round8(8));
  const __m256i high = _mm256_packs_epi32(round8(16), round8(24));
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
  sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
  return {_mm_cvtsi128_si32(_mm256_castsi256_si128(sums)),
          _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1))};
}

#else

MILLRACE_ALWAYS_INLINE float largest_magnitude(const float* x) {
  Ints most = {};
  for (int i = 0; i < kQuantBlock; i += kPartLanes) {
    const Ints bits = reinterpret_cast<Ints>(part_load(x + i)) & 0x7fffffff;
    most = most > bits ? most : bits;
  }
  std::int32_t out = 0;
  for (int i = 0; i < kPartLanes; ++i) out = out > most[i] ? out : most[i];
  return __builtin_bit_cast(float, out);
}

// Adding the magic number leaves the rounded integer in the low bits of the mantissa.
MILLRACE_ALWAYS_INLINE std::int32_t round_half(const float* x, float inverse, std::int8_t* q) {
  constexpr float kMagic = 0x1.8p23F;
  Ints sum = {};
  for (int i = 0; i < kQuantBlock / 2; i += kPartLanes) {
    const Part scaled = part_mul(part_load(x + i), part_set1(inverse));
    const Ints rounded = reinterpret_cast<Ints>(part_add(scaled, part_set1(kMagic))) -
                         __builtin_bit_cast(std::int32_t, kMagic);
    for (int j = 0; j < kPartLanes; ++j) q[i + j] = static_cast<std::int8_t>(rounded[j]);
    sum += rounded;
  }
  std::int32_t out = 0;
  for (int i = 0; i < kPartLanes; ++i) out += sum[i];
  return out;
}

MILLRACE_ALWAYS_INLINE HalfSums round_block(const float* x, float inverse, std::int8_t* q) {
  return {round_half(x, inverse, q), round_half(x + kQuantBlock / 2, inverse, q + kQuantBlock / 2)};
}

#endif

// A QuantizeFn.
MILLRACE_ALWAYS_INLINE void quantize_blocks(const float* x, std::int64_t blocks, QuantizeMode mode,
                                            QuantizedBlock* out) {
  for (std::int64_t i = 0; i < blocks; ++i, x += kQuantBlock, ++out) {
    const float magnitude = largest_magnitude(x);
    HalfSums sums;
    if (magnitude >= 0x1p-100F && magnitude <= std::numeric_limits<float>::max()) {
      sums = round_block(x, 127.0F / magnitude, out->q);
      out->scale = magnitude / 127.0F;
    } else {
      std::memset(out->q, 0, sizeof out->q);
      out->scale = magnitude < 1.0F ? 0.0F : std::numeric_limits<float>::quiet_NaN();
    }
    out->sum = out->scale * static_cast<float>(sums.low + sums.high);
    out->start[0] = -mode.offset * (mode.halves ? sums.low : sums.low + sums.high);
    out->start[1] = -mode.offset * sums.high;
  }
}

}  // namespace millrace::kernels::MILLRACE_ISA
