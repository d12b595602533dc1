// The scale of RMSNorm, shared by rms_norm and the per-head norm of q and k.
#pragma once

#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {

// 1 / sqrt(mean(x^2) + eps); the sum in the 16 lanes and the tree of gemm.
MILLRACE_ALWAYS_INLINE float rms_scale(const float* x, std::int64_t n, float eps) {
  Vec sum = set1(0.0F);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec v = load_n(x + i, n - i);
    sum = fma(v, v, sum);
  }
  const float mean = reduce_add(sum) / static_cast<float>(n);
  return 1.0F / __builtin_sqrtf(mean + eps);
}

}  // namespace millrace::kernels::MILLRACE_ISA
