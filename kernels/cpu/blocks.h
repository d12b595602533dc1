// Quantised blocks to f32, 16 values at a time. Each value is formed by the roundings of the
// reference (kernels/ref/dequantize.cc): scale products first, one multiply, one add or subtract,
// nothing fused.
#pragma once

#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {

using Bytes = const std::uint8_t*;

MILLRACE_ALWAYS_INLINE Bytes16 load_bytes(Bytes p) {
  Bytes16 b;
  std::memcpy(&b, p, sizeof b);
  return b;
}

MILLRACE_ALWAYS_INLINE float half_at(Bytes p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return f16_to_f32(bits);
#endif
}

namespace detail {
template <int... Index>
struct Parts {};
template <class Fn, int... Index>
MILLRACE_ALWAYS_INLINE Vec each_part(Fn fn, Parts<Index...>) {
  Vec out;
  ((out.part[Index] = fn.template operator()<Index>()), ...);
  return out;
}
using AllParts =
    std::conditional_t<kParts == 1, Parts<0>,
                       std::conditional_t<kParts == 2, Parts<0, 1>, Parts<0, 1, 2, 3>>>;
}  // namespace detail

MILLRACE_ALWAYS_INLINE Vec from_u8(Bytes16 b) {
  return detail::each_part(
      [b]<int I>() __attribute__((always_inline)) { return part_from_u8<I>(b); },
      detail::AllParts{});
}
MILLRACE_ALWAYS_INLINE Vec from_i8(Bytes16 b) {
  return detail::each_part(
      [b]<int I>() __attribute__((always_inline)) { return part_from_i8<I>(b); },
      detail::AllParts{});
}

MILLRACE_ALWAYS_INLINE Bytes16 low_nibbles(Bytes16 b) { return b & 15; }
MILLRACE_ALWAYS_INLINE Bytes16 high_nibbles(Bytes16 b) { return b >> 4; }

// A decoder hands a block's values to `sink(i, Vec)`: values i..i + 15, in ascending i, so that a
// dot product fed by it adds in the canonical order. Layouts: kernels/ref/dequantize.cc.
struct Q8_0 {
  static constexpr int kValues = 32;
  static constexpr int kBytes = 34;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const Vec d = set1(half_at(b));
    sink(0, mul(d, from_i8(load_bytes(b + 2))));
    sink(16, mul(d, from_i8(load_bytes(b + 18))));
  }
};

struct Q4_0 {
  static constexpr int kValues = 32;
  static constexpr int kBytes = 18;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const Vec d = set1(half_at(b));
    const Bytes16 n = load_bytes(b + 2);
    sink(0, mul(d, from_i8(low_nibbles(n) - 8)));
    sink(16, mul(d, from_i8(high_nibbles(n) - 8)));
  }
};

struct Q4_1 {
  static constexpr int kValues = 32;
  static constexpr int kBytes = 20;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const Vec d = set1(half_at(b));
    const Vec m = set1(half_at(b + 2));
    const Bytes16 n = load_bytes(b + 4);
    sink(0, add(mul(d, from_u8(low_nibbles(n))), m));
    sink(16, add(mul(d, from_u8(high_nibbles(n))), m));
  }
};

// The products d * scale and dmin * min of the eight sub-blocks of a Q4_K or Q5_K block.
struct ScaleMins {
  float d[8];
  float m[8];
};
MILLRACE_ALWAYS_INLINE ScaleMins scale_mins(Bytes block) {
  Bytes s = block + 4;
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  ScaleMins out;
  MILLRACE_UNROLL
  for (int j = 0; j < 4; ++j) {
    out.d[j] = d * static_cast<float>(s[j] & 63);
    out.m[j] = dmin * static_cast<float>(s[j + 4] & 63);
    out.d[j + 4] = d * static_cast<float>((s[j + 8] & 15) | ((s[j] >> 6) << 4));
    out.m[j + 4] = dmin * static_cast<float>((s[j + 8] >> 4) | ((s[j + 4] >> 6) << 4));
  }
  return out;
}

struct Q4_K {
  static constexpr int kValues = 256;
  static constexpr int kBytes = 144;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const ScaleMins s = scale_mins(b);
    MILLRACE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const Vec d = set1(s.d[j]);
      const Vec m = set1(s.m[j]);
      MILLRACE_UNROLL
      for (int l = 0; l < 32; l += 16) {
        const Bytes16 n = load_bytes(b + 16 + 32 * (j / 2) + l);
        sink(32 * j + l, sub(mul(d, from_u8(j % 2 == 0 ? low_nibbles(n) : high_nibbles(n))), m));
      }
    }
  }
};

struct Q5_K {
  static constexpr int kValues = 256;
  static constexpr int kBytes = 176;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const ScaleMins s = scale_mins(b);
    MILLRACE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const Vec d = set1(s.d[j]);
      const Vec m = set1(s.m[j]);
      MILLRACE_UNROLL
      for (int l = 0; l < 32; l += 16) {
        const Bytes16 n = load_bytes(b + 48 + 32 * (j / 2) + l);
        const Bytes16 fifth = ((load_bytes(b + 16 + l) >> j) & 1) << 4;
        const Bytes16 q = (j % 2 == 0 ? low_nibbles(n) : high_nibbles(n)) | fifth;
        sink(32 * j + l, sub(mul(d, from_u8(q)), m));
      }
    }
  }
};

struct Q6_K {
  static constexpr int kValues = 256;
  static constexpr int kBytes = 210;
  template <class Sink>
  MILLRACE_ALWAYS_INLINE static void decode(Bytes b, Sink sink) {
    const float d = half_at(b + 208);
    MILLRACE_UNROLL
    for (int i = 0; i < 256; i += 16) {
      const int half = i / 128;
      const int quarter = i % 128 / 32;
      const int l = i % 32;
      const Bytes16 low = load_bytes(b + 64 * half + 32 * (quarter % 2) + l);
      const Bytes16 high = (load_bytes(b + 128 + 32 * half + l) >> (2 * quarter)) & 3;
      const Bytes16 q = (quarter < 2 ? low_nibbles(low) : high_nibbles(low)) | (high << 4);
      const auto scale = static_cast<std::int8_t>(b[192 + i / 16]);
      sink(i, mul(set1(d * static_cast<float>(scale)), from_i8(q - 32)));
    }
  }
};

}  // namespace millrace::kernels::MILLRACE_ISA
