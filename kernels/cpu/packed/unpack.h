// Weights unpacked once for many tokens: a range of K of 16 rows as bytes and scales in single
// precision, small enough for L1. The values and coefficients are those that the tiles read
// (formats.h), so sums over them have the same bits.
#pragma once

#include "kernels/cpu/packed/formats.h"
#include "kernels/packed.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels::MILLRACE_ISA {

// 32 inputs of 16 rows. Formats with one scale leave the second out, those without minima these.
struct alignas(64) UnpackedBlock {
  std::uint8_t values[kQuantBlock / 4][4 * kPackedRows];  // four neighbouring inputs of each row
  float scale[2][kPackedRows];
  float minimum[kPackedRows];
};

// 16 blocks, 11 KiB: beside them L1 holds as much of 16 tokens (12 KiB) and the tiles' sums.
inline constexpr int kUnpackedBlocks = 16;

// kValues: signed bytes, what the quants stand for. kQuants: unsigned, as Dots takes them.
enum class Unpacked { kValues, kQuants };

template <class Format, Unpacked kForm>
MILLRACE_ALWAYS_INLINE void unpack_block(Bytes unit, int b, int group, UnpackedBlock& out) {
  MILLRACE_UNROLL
  for (int half = 0; half < Format::kHalves; ++half) {
    MILLRACE_UNROLL
    for (int step = 0; step < Format::kSteps; ++step) {
      Quants values = Format::quants(unit, b, half, group, step);
      if constexpr (kForm == Unpacked::kValues) {
        values -= static_cast<std::uint8_t>(kOffset<Format>);
      }
      std::memcpy(out.values[Format::inputs(half, step)] + 4 * kPartLanes * group, &values,
                  sizeof values);
    }
    part_store(out.scale[half] + kPartLanes * group, Format::scale(unit, b, half, group));
  }
  if constexpr (Format::kMinimum) {
    part_store(out.minimum + kPartLanes * group, Format::minimum(unit, b, group));
  }
}

// `count` blocks, whole units of them.
template <class Format, Unpacked kForm>
MILLRACE_ALWAYS_INLINE void unpack(Bytes unit, std::int64_t count, UnpackedBlock* out) {
  constexpr int kBlocks = Format::kValues / kQuantBlock;
  static_assert(kUnpackedBlocks % kBlocks == 0);
  for (std::int64_t i = 0; i < count; i += kBlocks, unit += Format::kBytes) {
    for (int b = 0; b < kBlocks; ++b) {
      for (int group = 0; group < kParts; ++group) {
        unpack_block<Format, kForm>(unit, b, group, out[i + b]);
      }
    }
  }
}

}  // namespace millrace::kernels::MILLRACE_ISA
