// Stands in for CUDA's header of this name: e4m3 only.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/types.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x;

  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float v) : __x(millrace::kernels::cuda::to_e4m3(v).bits) {}
  explicit operator float() const {
    return millrace::kernels::cuda::to_f32(millrace::kernels::cuda::Fp8E4M3{__x});
  }
};

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t saturation,
                                                __nv_fp8_interpretation_t kind) {
  assert(saturation == __NV_SATFINITE && kind == __NV_E4M3);
  (void)saturation, (void)kind;
  return millrace::kernels::cuda::to_e4m3(v).bits;
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t kind) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(v.x, saturation, kind) |
                                           __nv_cvt_float_to_fp8(v.y, saturation, kind) << 8);
}
