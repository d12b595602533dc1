// bf16 weights to FP8 (E4M3) with a power-of-two scale for each row and 128 columns, packed for
// kernels/cuda/gemm.h in the same pass (kernels/cuda/gemm_layout.h has the bytes).
#pragma once

#include "kernels/cuda/gemm_pack.h"

namespace millrace::kernels::cuda {

// Of a row's 128 values (the last block of a row may be shorter) with largest magnitude m, the
// scale is 2^e with the smallest e in [-100, 7] such that m <= 448 * 2^e; each value is divided by
// it (exactly) and rounded to the nearest e4m3, ties to even. A power of two costs nothing against
// the exact quotient m / 448: the relative error of a floating-point value is at most 2^-4 either
// way, and only values under 2^-14 of the block's largest lose more (they are subnormal).
//
// Writes packed_bytes(kFp8E4M3, rows, cols) bytes. `unusable`, a device counter that the caller
// zeroes, grows by the number of values that no scale can hold: infinities, NaN and magnitudes
// above 57,344 (448 * 2^7). They are stored as +-57,344 (NaN as 0): a loader refuses the tensor.
void quantize_weight(StreamRef stream, const WeightRows& rows, std::byte* packed,
                     std::uint32_t* unusable);

}  // namespace millrace::kernels::cuda
