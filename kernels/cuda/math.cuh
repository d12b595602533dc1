// exp, sigmoid and silu of f32, written out: the same bits on every architecture, whatever the
// compiler's own expf is, and the same function as kernels/cpu/math.h on a CPU with fused
// multiply-add.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {

// exp(x) within 0.95 ulp; 0 below -104, infinity above 88.73, NaN for NaN.
//
// x = n ln2 + r with |r| <= ln2/2. ln2 is split so that n * 355/512 is exact. e^r is its Taylor sum
// to r^7: the rest is under (ln2/2)^8 / 8! = 6e-9, a tenth of an ulp of f32.
__device__ __forceinline__ float exp_f32(float x) {
  // Adding 1.5 * 2^23 rounds to an integer, to nearest, in the low bits of the sum.
  constexpr float kMagic = 12582912.0F;
  x = x > 89.0F ? 89.0F : x;  // comparisons, not fminf: NaN must pass
  x = x < -105.0F ? -105.0F : x;
  const float shifted = __fmaf_rn(x, 1.44269504F, kMagic);
  const float n = __fsub_rn(shifted, kMagic);
  float r = __fmaf_rn(n, -0.693359375F, x);
  r = __fmaf_rn(n, 2.12194440e-4F, r);
  float p = 1.0F / 5040;
  p = __fmaf_rn(p, r, 1.0F / 720);
  p = __fmaf_rn(p, r, 1.0F / 120);
  p = __fmaf_rn(p, r, 1.0F / 24);
  p = __fmaf_rn(p, r, 1.0F / 6);
  p = __fmaf_rn(p, r, 0.5F);
  p = __fmaf_rn(p, r, 1.0F);
  p = __fmaf_rn(p, r, 1.0F);
  // 2^n as a product of two powers, so that n = 128 and results below 2^-126 come out right. For
  // NaN the exponent is arbitrary and the product stays NaN.
  const unsigned steps = __float_as_uint(shifted) - __float_as_uint(kMagic);
  const int exponent = static_cast<int>(steps);
  const int half = exponent >> 1;
  const float a = __uint_as_float(static_cast<unsigned>(half + 127) << 23);
  const float b = __uint_as_float(static_cast<unsigned>(exponent - half + 127) << 23);
  return __fmul_rn(__fmul_rn(p, a), b);
}

__device__ __forceinline__ float sigmoid_f32(float x) {
  return __fdiv_rn(1.0F, __fadd_rn(1.0F, exp_f32(-x)));
}

// x / (1 + exp(-x)): 0 for -inf is NaN (-inf / inf), as in the CPU's set.
__device__ __forceinline__ float silu_f32(float x) {
  return __fdiv_rn(x, __fadd_rn(1.0F, exp_f32(-x)));
}

}  // namespace millrace::kernels::cuda
