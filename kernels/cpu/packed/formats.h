// How the tiles read a unit of each packed type (kernels/packed.h): the quants of kPartLanes rows,
// four inputs in each of kSteps steps, and the coefficients of the rows. `group` counts those rows
// within the 16; `b` the blocks of 32 values within a unit; `half` the 16 values that have a scale
// in common. inputs() says which four of the block's 32 inputs a step multiplies.
#pragma once

#include <type_traits>

#include "kernels/cpu/packed/dots.h"

namespace millrace::kernels::MILLRACE_ISA {

using Bytes = const std::uint8_t*;

MILLRACE_ALWAYS_INLINE Part half_plane(Bytes plane, int group) {
  return part_load_f16(reinterpret_cast<const std::uint16_t*>(plane) + group * kPartLanes);
}
// A byte of each row; bytes beyond kPartLanes are zero. One load and no detour through memory.
MILLRACE_ALWAYS_INLINE Bytes16 byte_plane(Bytes plane, int group) {
  if constexpr (kPartLanes == 16) {
    Bytes16 v;
    std::memcpy(&v, plane, sizeof v);
    return v;
  } else {
    using Word = std::conditional_t<kPartLanes == 8, std::uint64_t, std::uint32_t>;
    typedef Word Words __attribute__((vector_size(16)));  // NOLINT: `using` drops the attribute
    Word word;
    std::memcpy(&word, plane + group * kPartLanes, sizeof word);
    return reinterpret_cast<Bytes16>(Words{word});
  }
}
MILLRACE_ALWAYS_INLINE Quants line(Bytes lines, int index, int group) {
  return load_quants(lines + 64 * index + 4 * kPartLanes * group);
}

// Blocks of 32 with a scale: four lines of nibbles, the low ones inputs 0-15, the high ones 16-31.
template <int kHeader>
struct Nibbles32 {
  static constexpr int kValues = 32;
  static constexpr int kBytes = kHeader + 256;
  static constexpr int kLargest = 15;
  static constexpr int kHalves = 1;

  static constexpr int kSteps = 8;
  MILLRACE_ALWAYS_INLINE static int inputs(int, int step) { return step / 2 + step % 2 * 4; }
  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int, int, int group, int step) {
    const Quants both = line(unit + kHeader, step / 2, group);
    return step % 2 == 0 ? both & 15 : nibbles(both, 4);
  }
  MILLRACE_ALWAYS_INLINE static Part scale(Bytes unit, int, int, int group) {
    return half_plane(unit, group);
  }
};

struct P4_0 : Nibbles32<32> {
  static constexpr bool kMinimum = false;
};

struct P4_1 : Nibbles32<64> {
  static constexpr bool kMinimum = true;
  MILLRACE_ALWAYS_INLINE static Part minimum(Bytes unit, int, int group) {
    return half_plane(unit + 32, group);
  }
};

struct P8_0 {
  static constexpr int kValues = 32;
  static constexpr int kBytes = 32 + 512;
  static constexpr int kLargest = 255;
  static constexpr int kHalves = 1;
  static constexpr bool kMinimum = false;

  static constexpr int kSteps = 8;
  MILLRACE_ALWAYS_INLINE static int inputs(int, int step) { return step; }
  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int, int, int group, int step) {
    return line(unit + 32, step, group);
  }
  MILLRACE_ALWAYS_INLINE static Part scale(Bytes unit, int, int, int group) {
    return half_plane(unit, group);
  }
};

// The 6-bit scales and minima of Q4_K and Q5_K: d, dmin, then twelve planes of bytes.
struct SixBitScales {
  static constexpr int kValues = 256;
  static constexpr int kHalves = 1;
  static constexpr bool kMinimum = true;
  static constexpr int kHeader = 64 + 12 * 16;
  static constexpr int kSteps = 8;

  MILLRACE_ALWAYS_INLINE static int inputs(int, int step) { return step; }

  MILLRACE_ALWAYS_INLINE static Part scale(Bytes unit, int b, int, int group) {
    const auto plane = [&](int i) __attribute__((always_inline)) {
      return byte_plane(unit + 64 + 16 * i, group);
    };
    const Bytes16 bits = b < 4 ? plane(b) & 63 : (plane(b + 4) & 15) | ((plane(b - 4) >> 6) << 4);
    return part_mul(half_plane(unit, group), part_from_u8<0>(bits));
  }
  MILLRACE_ALWAYS_INLINE static Part minimum(Bytes unit, int b, int group) {
    const auto plane = [&](int i) __attribute__((always_inline)) {
      return byte_plane(unit + 64 + 16 * i, group);
    };
    const Bytes16 bits = b < 4 ? plane(b + 4) & 63 : (plane(b + 4) >> 4) | ((plane(b) >> 6) << 4);
    const Part product = part_mul(half_plane(unit + 32, group), part_from_u8<0>(bits));
    return part_mul(product, part_set1(-1.0F));
  }
};

struct P4_K : SixBitScales {
  static constexpr int kBytes = kHeader + 32 * 64;
  static constexpr int kLargest = 15;

  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int b, int, int group, int step) {
    return nibbles(line(unit + kHeader + 512 * (b / 2), step, group), 4 * (b % 2));
  }
};

struct P5_K : SixBitScales {
  static constexpr int kBytes = kHeader + 8 * 64 + 32 * 64;
  static constexpr int kLargest = 31;

  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int b, int, int group, int step) {
    Bytes fifths = unit + kHeader;
    const Quants low = nibbles(line(fifths + 512 + 512 * (b / 2), step, group), 4 * (b % 2));
    return low | move_bits(line(fifths, step, group), b, 4, 1);
  }
};

struct P6_K {
  static constexpr int kValues = 256;
  static constexpr int kHeader = 32 + 16 * 16;
  static constexpr int kBytes = kHeader + 32 * 64 + 16 * 64;
  static constexpr int kLargest = 63;
  static constexpr int kHalves = 2;
  static constexpr bool kMinimum = false;

  static constexpr int kSteps = 4;
  MILLRACE_ALWAYS_INLINE static int inputs(int half, int step) { return 4 * half + step; }
  // Block b is quarter b % 4 of half b / 4 of Q6_K's 256 values.
  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int b, int half, int group, int step) {
    const int quarter = b % 4;
    Bytes low = unit + kHeader + 64 * (16 * (b / 4) + 8 * (quarter % 2));
    Bytes high = unit + kHeader + 32 * 64 + 64 * (8 * (b / 4));
    const int g = inputs(half, step);
    const Quants four = nibbles(line(low, g, group), 4 * (quarter / 2));
    return four | move_bits(line(high, g, group), 2 * quarter, 4, 3);
  }
  MILLRACE_ALWAYS_INLINE static Part scale(Bytes unit, int b, int half, int group) {
    const Bytes16 bits = byte_plane(unit + 32 + 16 * (2 * b + half), group);
    return part_mul(half_plane(unit, group), part_from_i8<0>(bits));
  }
};

// What the quants of a format without a minimum are above the values they stand for.
template <class Format>
inline constexpr int kOffset = Format::kMinimum ? 0 : (Format::kLargest + 1) / 2;

}  // namespace millrace::kernels::MILLRACE_ISA
