// Sums of products of unsigned weight quants and signed activations, for kPartLanes rows at a time
// and N tokens side by side. Exact in every set: what differs is how the processor gets there.
#pragma once

#include "kernels/cpu/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace millrace::kernels::MILLRACE_ISA {

// One lane a row, the quants of four neighbouring inputs in it.
using Quants = std::uint8_t __attribute__((vector_size(4 * kPartLanes)));
using Shorts = std::uint16_t __attribute__((vector_size(4 * kPartLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kPartLanes)));

MILLRACE_ALWAYS_INLINE Quants load_quants(const std::uint8_t* p) {
  Quants v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Bits [shift, shift + 4) of each byte; shift 0 or 4. 16-bit shifts, since there are none of bytes.
MILLRACE_ALWAYS_INLINE Quants nibbles(Quants v, int shift) {
  return reinterpret_cast<Quants>(reinterpret_cast<Shorts>(v) >> shift) & 15;
}
// `mask` << `to` of the bits of each byte that begin at `from`; the bits must not leave their byte.
MILLRACE_ALWAYS_INLINE Quants move_bits(Quants v, int from, int to, std::uint8_t mask) {
  const Shorts wide = reinterpret_cast<Shorts>(v);
  const Shorts low = (wide >> from) << to;
  const auto kept = static_cast<std::uint8_t>(mask << to);
  return reinterpret_cast<Quants>(low) & (Quants{} + kept);
}

MILLRACE_ALWAYS_INLINE std::int32_t load_i32(const void* p) {
  std::int32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
inline constexpr bool kHasVnni = true;
#else
inline constexpr bool kHasVnni = false;
#endif

// kLargest: the largest quant; steps come in multiples of kFlush.
template <int kLargest, int N>
struct Dots {
#if defined(__AVX2__)
  // Pair sums of 16 bits saturate, so only so many of them are added before they are widened. Full
  // bytes do not fit once: they are taken back to signed values, whose sign moves to the
  // activation.
  static constexpr bool kSigned = !kHasVnni && kLargest > 128;
  static constexpr int kFlush = kSigned ? 1 : 32767 / (2 * 127 * kLargest);
#else
  static constexpr bool kSigned = false;
#endif

  Ints sum[N];
  Ints pairs[N];  // 16-bit sums; without VNNI only

  // `value` makes up for the quants' offset, which signed values do not have.
  MILLRACE_ALWAYS_INLINE void start(int n, std::int32_t value) {
    sum[n] = kSigned ? Ints{} : Ints{} + value;
  }

  // Adds the four products of each row. `index` counts the steps since start.
  MILLRACE_ALWAYS_INLINE void step(int n, int index, Quants w, const std::int8_t* x);

  MILLRACE_ALWAYS_INLINE Part floats(int n) const { return __builtin_convertvector(sum[n], Part); }
};

#if defined(__AVX2__)
// Computed here and kept in a register. gcc 12 would put additions off until their sum is used and
// hold the products of all steps in memory instead: 27 stores a block of P4_0 with 16 registers.
template <class Vector>
MILLRACE_ALWAYS_INLINE Vector pinned(Vector v) {
  asm("" : "+v"(v));
  return v;
}
#endif

#if defined(__AVX512F__)

template <int kLargest, int N>
MILLRACE_ALWAYS_INLINE void Dots<kLargest, N>::step(int n, int index, Quants w,
                                                    const std::int8_t* x) {
  const __m512i xv = _mm512_set1_epi32(load_i32(x));
  const auto wv = reinterpret_cast<__m512i>(w);
  const auto old = reinterpret_cast<__m512i>(sum[n]);
#if defined(__AVX512VNNI__)
  static_cast<void>(index);
  sum[n] = reinterpret_cast<Ints>(_mm512_dpbusd_epi32(old, wv, xv));
#else
  __m512i products;
  if constexpr (kSigned) {
    const __m512i value = _mm512_xor_si512(wv, _mm512_set1_epi8(-128));
    const __m512i turned =
        _mm512_mask_sub_epi8(xv, _mm512_movepi8_mask(value), _mm512_setzero_si512(), xv);
    products = _mm512_maddubs_epi16(_mm512_abs_epi8(value), turned);
  } else {
    products = _mm512_maddubs_epi16(wv, xv);
  }
  if (index % kFlush != 0) {
    products = _mm512_add_epi16(products, reinterpret_cast<__m512i>(pairs[n]));
  }
  if ((index + 1) % kFlush != 0) {
    pairs[n] = reinterpret_cast<Ints>(pinned(products));
    return;
  }
  const __m512i wide = _mm512_madd_epi16(products, _mm512_set1_epi16(1));
  sum[n] = reinterpret_cast<Ints>(pinned(_mm512_add_epi32(old, wide)));
#endif
}

#elif defined(__AVX2__)

template <int kLargest, int N>
MILLRACE_ALWAYS_INLINE void Dots<kLargest, N>::step(int n, int index, Quants w,
                                                    const std::int8_t* x) {
  const __m256i xv = _mm256_set1_epi32(load_i32(x));
  const auto wv = reinterpret_cast<__m256i>(w);
  const auto old = reinterpret_cast<__m256i>(sum[n]);
#if defined(__AVXVNNI__)
  static_cast<void>(index);
  sum[n] = reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(old, wv, xv));
#else
  __m256i products;
  if constexpr (kSigned) {
    const __m256i value = _mm256_xor_si256(wv, _mm256_set1_epi8(-128));
    products = _mm256_maddubs_epi16(_mm256_abs_epi8(value), _mm256_sign_epi8(xv, value));
  } else {
    products = _mm256_maddubs_epi16(wv, xv);
  }
  if (index % kFlush != 0) {
    products = _mm256_add_epi16(products, reinterpret_cast<__m256i>(pairs[n]));
  }
  if ((index + 1) % kFlush != 0) {
    pairs[n] = reinterpret_cast<Ints>(pinned(products));
    return;
  }
  const __m256i wide = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
  sum[n] = reinterpret_cast<Ints>(pinned(_mm256_add_epi32(old, wide)));
#endif
}

#else

// Four rows. Bytes 0 and 2 of a lane as one pair of 16-bit numbers, bytes 1 and 3 as another.
template <int kLargest, int N>
MILLRACE_ALWAYS_INLINE void Dots<kLargest, N>::step(int n, int, Quants w, const std::int8_t* x) {
  const Ints wide = reinterpret_cast<Ints>(reinterpret_cast<Shorts>(w) & 0xff);
  const Ints odd = reinterpret_cast<Ints>(reinterpret_cast<Shorts>(w) >> 8);
#if defined(__SSE2__)
  const auto pair = [](std::int8_t low, std::int8_t high) {
    return reinterpret_cast<__m128i>(
        Ints{} + static_cast<std::int32_t>((static_cast<std::uint32_t>(high) << 16) |
                                           static_cast<std::uint16_t>(low)));
  };
  const __m128i a = _mm_madd_epi16(reinterpret_cast<__m128i>(wide), pair(x[0], x[2]));
  const __m128i b = _mm_madd_epi16(reinterpret_cast<__m128i>(odd), pair(x[1], x[3]));
  sum[n] += reinterpret_cast<Ints>(_mm_add_epi32(a, b));
#else
  const Ints low = (wide & 0xffff) * x[0] + (wide >> 16) * x[2];
  sum[n] += low + (odd & 0xffff) * x[1] + (odd >> 16) * x[3];
#endif
}

#endif

}  // namespace millrace::kernels::MILLRACE_ISA
