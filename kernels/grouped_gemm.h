// One GEMM per expert over rows grouped by expert. Each row has the bits that kernels/gemm.h gives
// for the same row and weight.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

struct GroupedGemmArgs {
  MatrixView<const float> x;             // [rows, K]; grouped already, unless x_rows says otherwise
  std::span<const std::int32_t> x_rows;  // empty, or [R]: grouped row r reads x row x_rows[r]
  std::span<const std::int64_t> offsets;  // [E_local + 1], ascending from 0, offsets.back() == R
  std::span<const WeightView> weights;    // [E_local], each [N, K]
  MatrixView<float> y;                    // [>= R, N]; rows 0..R-1 are written
};

// Experts without rows are skipped, so a WeightView of theirs is never read.
using GroupedGemmOp = void(const Context& context, const GroupedGemmArgs& args);

void check_grouped_gemm(const GroupedGemmArgs& args);

}  // namespace millrace::kernels
