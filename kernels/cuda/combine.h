// Weighted sum of a token's expert outputs into the residual, on the device, in the canonical order
// (kernels/combine.h): k ascending, which is ascending expert id.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// All pointers are device memory.
struct CombineArgs {
  MatrixView<const BFloat16> y;         // [R, D]: expert outputs, rows aligned to 16 bytes
  MatrixView<const std::int32_t> rows;  // [T, K] contiguous: row of y for the pair; -1 is left out
  MatrixView<const float> weights;      // [T, K] contiguous
  MatrixView<float> hidden;             // [T, D], rows aligned to 16 bytes
};

// sum = +0, then sum = fma(weights[t, k], y[rows[t, k]], sum) for k = 0, 1, ...; hidden[t] += sum.
// A row whose pairs are all left out is not touched. D is a multiple of 8, K at most 64.
void combine(StreamRef stream, const CombineArgs& args);

}  // namespace millrace::kernels::cuda
