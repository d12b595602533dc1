// RMSNorm on the device: out = x / sqrt(mean(x^2) + eps) * weight, f32 in, bf16 out (the input of a
// GEMM); one rounding to bf16 at the end (kernels/rms_norm.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// All pointers are device memory.
struct RmsNormArgs {
  MatrixView<const float> x;      // [T, D], rows aligned to 16 bytes
  const float* weight = nullptr;  // [D], 16-byte aligned
  float eps = 0;
  // Null: out[r] is of x[r]. Otherwise [R]: out[r] is of x[rows[r]], and zeros where rows[r] is
  // negative: the rows whose logits are wanted, padded to the bucket.
  const std::int32_t* rows = nullptr;
  MatrixView<BFloat16> out;  // [T, D] or [R, D], rows aligned to 16 bytes
};

// D a multiple of 8, at most 16384. The order of the sum depends on D only.
void rms_norm(StreamRef stream, const RmsNormArgs& args);

}  // namespace millrace::kernels::cuda
