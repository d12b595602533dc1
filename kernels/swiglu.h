// SwiGLU (Shazeer 2020): out = silu(gate) * up, silu(a) = a / (1 + exp(-a)).
#pragma once

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// gate, up, out [T, F]: separate matrices, or column slices of one [T, 2F]. out may be gate or up
// itself but not overlap them otherwise.
using SwigluOp = void(const Context& context, MatrixView<const float> gate,
                      MatrixView<const float> up, MatrixView<float> out);

void check_swiglu(MatrixView<const float> gate, MatrixView<const float> up, MatrixView<float> out);

}  // namespace millrace::kernels
