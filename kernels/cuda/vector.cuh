// Eight channels at a time: 16 bytes of bf16, 32 of f32. Pointers are aligned to the bytes moved.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {

inline constexpr int kVec = 8;

struct Vec8 {
  float v[kVec];
};

__device__ __forceinline__ Vec8 unpack_bf16(uint4 bits) {
  const float2 a = bf16x2_to_f32x2(bits.x);
  const float2 b = bf16x2_to_f32x2(bits.y);
  const float2 c = bf16x2_to_f32x2(bits.z);
  const float2 d = bf16x2_to_f32x2(bits.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ __forceinline__ uint4 pack_bf16(const Vec8& x) {
  return make_uint4(f32x2_to_bf16x2(x.v[0], x.v[1]), f32x2_to_bf16x2(x.v[2], x.v[3]),
                    f32x2_to_bf16x2(x.v[4], x.v[5]), f32x2_to_bf16x2(x.v[6], x.v[7]));
}

__device__ __forceinline__ Vec8 round_bf16(const Vec8& x) { return unpack_bf16(pack_bf16(x)); }

// Eight e4m3 values.
__device__ __forceinline__ Vec8 unpack_e4m3(uint2 bits) {
  const float2 a = e4m3x2_to_f32x2(static_cast<std::uint16_t>(bits.x & 0xffffU));
  const float2 b = e4m3x2_to_f32x2(static_cast<std::uint16_t>(bits.x >> 16));
  const float2 c = e4m3x2_to_f32x2(static_cast<std::uint16_t>(bits.y & 0xffffU));
  const float2 d = e4m3x2_to_f32x2(static_cast<std::uint16_t>(bits.y >> 16));
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ __forceinline__ uint2 pack_e4m3(const Vec8& x) {
  const unsigned a = f32x2_to_e4m3x2(x.v[0], x.v[1]);
  const unsigned b = f32x2_to_e4m3x2(x.v[2], x.v[3]);
  const unsigned c = f32x2_to_e4m3x2(x.v[4], x.v[5]);
  const unsigned d = f32x2_to_e4m3x2(x.v[6], x.v[7]);
  return make_uint2(a | (b << 16), c | (d << 16));
}

__device__ __forceinline__ Vec8 load8(const __nv_bfloat16* p) {
  return unpack_bf16(*reinterpret_cast<const uint4*>(p));
}

__device__ __forceinline__ Vec8 load8(const float* p) {
  const float4 a = reinterpret_cast<const float4*>(p)[0];
  const float4 b = reinterpret_cast<const float4*>(p)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ void store8(__nv_bfloat16* p, const Vec8& x) {
  *reinterpret_cast<uint4*>(p) = pack_bf16(x);
}

__device__ __forceinline__ void store8(float* p, const Vec8& x) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

}  // namespace millrace::kernels::cuda
