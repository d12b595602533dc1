// Every instruction of the engine that CUDA C++ has no words for, as small device functions with
// the semantics of the PTX ISA's instruction named beside them. No other file holds inline PTX, so
// the twin of this header in tests/cuda_emulator/include runs all kernels on the CPU.
//
// Functions under "compute capability 9.0" compile everywhere but trap where the hardware lacks
// them; launchers choose by current_cc(). Kernels that need them wrap their bodies in
// #if MILLRACE_SM90 or #if MILLRACE_SM90A, so that other targets hold an empty kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/tensor_map.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MILLRACE_SM90 1  // mbarrier transactions, TMA
#else
#define MILLRACE_SM90 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MILLRACE_SM90A 1  // wgmma, setmaxnreg
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "compile for 90a, not 90: on Hopper the launchers choose kernels that would be empty"
#else
#define MILLRACE_SM90A 0
#endif

namespace millrace::kernels::cuda {

// The address PTX knows shared memory by.
__device__ __forceinline__ std::uint32_t smem_address(const void* smem) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(smem));
}

// ---- global memory ----------------------------------------------------------------------------

// ld.global.nc.L1::no_allocate.v4: 16 aligned bytes that no kernel writes meanwhile and that are
// used once, as weights are.
__device__ __forceinline__ uint4 ld_nc_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// The same for 8 bytes.
__device__ __forceinline__ uint2 ld_nc_8(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p));
  return v;
}
// st.global.L1::no_allocate.v4: 16 aligned bytes that this block does not read again.
__device__ __forceinline__ void st_no_allocate_16(void* p, uint4 v) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
// prefetch.global.L2 of the line that holds p.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// atom.add.acq_rel.gpu: the ticket of a reduction over blocks. All that this thread saw or wrote
// before it is visible to whoever sees its effect; a __syncthreads() before it covers the block's
// other threads, one after it lets them read what other blocks wrote.
__device__ __forceinline__ std::uint32_t atomic_ticket(std::uint32_t* counter) {
  std::uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(old)
               : "l"(counter)
               : "memory");
  return old;
}

// ---- cp.async ---------------------------------------------------------------------------------

// cp.async.cg.shared.global 16: copies 16 aligned bytes, past L1. Where `valid` is false it writes
// 16 zero bytes and does not read `global`, which must still be a sane pointer (pass the buffer's
// start).
__device__ __forceinline__ void cp_async_16(void* smem, const void* global, bool valid = true) {
  const std::uint32_t source_bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(smem)),
               "l"(global), "r"(source_bytes)
               : "memory");
}
// Copies since the last commit become one group of this thread.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most Pending of this thread's newest groups are unfinished. Other threads see the
// bytes after a barrier that follows.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- fragments and mma ------------------------------------------------------------------------

// ldmatrix.m8n8.x1/x2/x4.b16: matrix i's eight rows of 16 bytes lie at the addresses that lanes
// 8i..8i+7 pass; lane l receives in r[i] elements 2(l%4) and 2(l%4)+1 of row l/4 (the lower half is
// the first). _trans: of the transposed matrix. All lanes of the warp call it.
__device__ __forceinline__ void ldmatrix_x1(std::uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x1_trans(std::uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}

// mma.m16n8k16 of bf16 with f32 accumulators: d += a * b, a [16, 16], b [16, 8] (k by n), d [16,
// 8]. With g = lane/4 and q = lane%4, pairs are (lower half, upper half):
//   a[0] = A[g][2q, 2q+1]    a[1] = A[g+8][2q, 2q+1]   a[2] = A[g][2q+8, +9]   a[3] = A[g+8][2q+8,
//   +9] b[0] = B[2q, 2q+1][g]    b[1] = B[2q+8, 2q+9][g] d[0], d[1] = D[g][2q, 2q+1] d[2], d[3] =
//   D[g+8][2q, 2q+1]
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of f16.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- conversions ------------------------------------------------------------------------------

// Two values in a register: `lo` in the lower half. Rounded to nearest, ties to even.
__device__ __forceinline__ std::uint32_t f32x2_to_bf16x2(float lo, float hi) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ __forceinline__ float2 bf16x2_to_f32x2(std::uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U));
}
// e4m3, first value in the lower byte; saturates at +-448, NaN stays NaN.
__device__ __forceinline__ std::uint16_t f32x2_to_e4m3x2(float lo, float hi) {
  return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ std::uint16_t bf16x2_to_e4m3x2(std::uint32_t pair) {
  const float2 v = bf16x2_to_f32x2(pair);
  return f32x2_to_e4m3x2(v.x, v.y);
}
// Exact: every e4m3 value is a half and a bf16.
__device__ __forceinline__ std::uint32_t e4m3x2_to_half2(std::uint16_t pair) {
  const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
  return h.x | static_cast<std::uint32_t>(h.y) << 16;
}
__device__ __forceinline__ float2 e4m3x2_to_f32x2(std::uint16_t pair) {
  return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
}
__device__ __forceinline__ std::uint32_t e4m3x2_to_bf16x2(std::uint16_t pair) {
  const float2 v = e4m3x2_to_f32x2(pair);
  return __byte_perm(__float_as_uint(v.x), __float_as_uint(v.y), 0x7632);
}

// Two halves in a register, `lo` in the lower one. Rounded to nearest, ties to even; beyond 65,504
// an infinity.
__device__ __forceinline__ std::uint32_t f32x2_to_half2(float lo, float hi) {
  const __half2 pair = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
// ex2.approx.ftz: 2^x within 2 ulp; exactly 1 for 0, 0 for results under 2^-126 and for -infinity,
// NaN for NaN. The bits are those of the device's table, not of any library's exp2.
__device__ __forceinline__ float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two bf16 products, rounded to nearest: exact where one factor is a power of two. Subnormals are
// kept.
__device__ __forceinline__ std::uint32_t mul_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000U));
  return d;
}

// ---- named barriers ---------------------------------------------------------------------------

// bar.sync / bar.arrive: barrier 1..15 of the block (0 is __syncthreads) for `threads` threads, a
// multiple of 32; whole warps take part.
__device__ __forceinline__ void named_barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace millrace::kernels::cuda

#include "kernels/cuda/ptx_sm90.cuh"
#include "kernels/cuda/ptx_wgmma.cuh"
