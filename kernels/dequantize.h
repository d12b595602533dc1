// Dequantise: the values of a weight of any dtype as f32, exactly as the format defines them.
//
// All sets give the same bits: each value is formed by the roundings that the format's definition
// implies (scale products first, then one multiply and one subtract or add), never by a fused
// operation. Block layouts: the GGUF specification; ggml's ggml-quants is the reference.
#pragma once

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// w [N, K]; out [N, K] f32.
using DequantizeOp = void(const Context& context, const WeightView& w, MatrixView<float> out);

void check_dequantize(const WeightView& w, MatrixView<float> out);

}  // namespace millrace::kernels
