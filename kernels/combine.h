// Weighted sum of a token's expert outputs, in the canonical order: k ascending, which is ascending
// expert id as the router writes it, wherever the experts live.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"
#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

struct CombineArgs {
  MatrixView<const float> y;            // [R, D]: expert outputs
  MatrixView<const std::int32_t> rows;  // [T, K]: row of y for the pair; -1 is left out
  MatrixView<const float> weights;      // [T, K]
  Accumulate accumulate =
      Accumulate::kAdd;   // kAdd: out = out + sum, the residual; kStore: out = sum
  MatrixView<float> out;  // [T, D], not overlapping y
};

// sum = +0, then sum = fma(weights[t, k], y[rows[t, k]], sum) for k = 0, 1, ...
using CombineOp = void(const Context& context, const CombineArgs& args);

void check_combine(const CombineArgs& args);

}  // namespace millrace::kernels
