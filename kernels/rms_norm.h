// RMSNorm (Zhang and Sennrich 2019): out = x / sqrt(mean(x^2) + eps) * weight, in f32 throughout.
#pragma once

#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// x [T, D]; weight [D]; out [T, D], which may be x itself (same rows) but not overlap otherwise.
using RmsNormOp = void(const Context& context, MatrixView<const float> x,
                       std::span<const float> weight, float eps, MatrixView<float> out);

void check_rms_norm(MatrixView<const float> x, std::span<const float> weight, float eps,
                    MatrixView<float> out);

}  // namespace millrace::kernels
