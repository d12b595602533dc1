// GEMM with transposed weights: y[t, n] = sum over k of x[t, k] * w[n, k].
//
// The order of every sum is fixed by K alone (contract C1): 16 lanes, lane j taking k = j, j + 16,
// ... in order by fused multiply-add from +0 (the last group padded with zeros), then lanes j and j
// + 8 are added, then j and j + 4, j + 2, j + 1. Tiles, T, N and threads change only which sums are
// computed next to each other. The portable set has the same lanes with a separate multiply and
// add. Weights are converted exactly to f32 (kernels/dequantize.h); activations stay f32. Packed
// weights are another matter, with 8-bit activations and an order of their own:
// kernels/packed_gemm.h.
#pragma once

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

enum class Accumulate : bool {
  kStore = false,  // y = dot
  kAdd = true,     // y = y + dot: one rounded addition after the whole dot, for residuals
};

// x [T, K]; w [N, K] of any dtype; y [T, N], not overlapping x. Rows of x and y may be strided.
// Scratch (a converted panel of weights) is per thread, allocated at that thread's first use and
// bounded by 1 MiB whatever the shapes.
using GemmOp = void(const Context& context, MatrixView<const float> x, const WeightView& w,
                    Accumulate accumulate, MatrixView<float> y);

void check_gemm(MatrixView<const float> x, const WeightView& w, MatrixView<float> y);

}  // namespace millrace::kernels
