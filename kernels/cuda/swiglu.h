// SwiGLU on the device, for gate and up that a GEMM has left as separate columns: out = silu(gate)
// * up in f32, rounded once (kernels/swiglu.h). The GEMMs that have both in one tile apply the same
// silu_f32 of kernels/cuda/math.cuh in their epilogue and do not need this.
#pragma once

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// gate, up, out [T, F], F a multiple of 8, rows aligned to 16 bytes: separate matrices or column
// slices of one [T, 2F]. out may be gate or up itself but not overlap them otherwise.
void swiglu(StreamRef stream, MatrixView<const BFloat16> gate, MatrixView<const BFloat16> up,
            MatrixView<BFloat16> out);

}  // namespace millrace::kernels::cuda
