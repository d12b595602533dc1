// The emulator's twin of kernels/cuda/ptx.cuh and of the two files it includes; contracts stand
// there. Each function does what the PTX ISA says of its instruction, and fails the kernel where
// that is undefined.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/tensor_map.h"

#define MILLRACE_SM90 1
#define MILLRACE_SM90A 1

namespace millrace::cuda_emulator {

using Where = std::source_location;

void wait_copies(int pending);
void load_matrix(std::uint32_t* registers, int matrices, bool transposed, const void* row,
                 Where where);
struct Wgmma {
  int n;
  bool trans_a, trans_b, accumulate;
  const std::uint32_t* a_registers;  // null: A comes from shared memory
  std::uint64_t a, b;
  float* d;
};
void issue_wgmma(const Wgmma& wgmma);
void wait_wgmma(int pending, Where where);

}  // namespace millrace::cuda_emulator

#define MILLRACE_WHERE std::source_location where = std::source_location::current()

namespace millrace::kernels::cuda {

// Offset in dynamic shared memory; other memory fails the kernel.
std::uint32_t smem_address(const void* smem);

uint4 ld_nc_16(const void* p);
uint2 ld_nc_8(const void* p);
void st_no_allocate_16(void* p, uint4 v);
inline void prefetch_l2(const void*) {}
std::uint32_t atomic_ticket(std::uint32_t* counter);

void cp_async_16(void* smem, const void* global, bool valid = true);
void cp_async_commit();
template <int Pending>
void cp_async_wait() {
  cuda_emulator::wait_copies(Pending);
}

inline void ldmatrix_x1(std::uint32_t (&r)[1], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 1, false, row, where);
}
inline void ldmatrix_x2(std::uint32_t (&r)[2], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 2, false, row, where);
}
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 4, false, row, where);
}
inline void ldmatrix_x1_trans(std::uint32_t (&r)[1], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 1, true, row, where);
}
inline void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 2, true, row, where);
}
inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row, MILLRACE_WHERE) {
  cuda_emulator::load_matrix(r, 4, true, row, where);
}
void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                       MILLRACE_WHERE);
void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                      MILLRACE_WHERE);

std::uint32_t f32x2_to_bf16x2(float lo, float hi);
std::uint32_t f32x2_to_half2(float lo, float hi);
float ex2_approx(float x);
float2 bf16x2_to_f32x2(std::uint32_t pair);
std::uint16_t f32x2_to_e4m3x2(float lo, float hi);
std::uint16_t bf16x2_to_e4m3x2(std::uint32_t pair);
std::uint32_t e4m3x2_to_half2(std::uint16_t pair);
float2 e4m3x2_to_f32x2(std::uint16_t pair);
std::uint32_t e4m3x2_to_bf16x2(std::uint16_t pair);
inline std::uint32_t mul_bf16x2(std::uint32_t a, std::uint32_t b) {
  const float2 x = bf16x2_to_f32x2(a);
  const float2 y = bf16x2_to_f32x2(b);
  return f32x2_to_bf16x2(x.x * y.x, x.y * y.y);
}

void named_barrier_sync(int barrier, int threads, MILLRACE_WHERE);
void named_barrier_arrive(int barrier, int threads, MILLRACE_WHERE);

// ---- kernels/cuda/ptx_sm90.cuh ----------------------------------------------------------------

void mbarrier_init(std::uint64_t* bar, std::uint32_t count);
inline void mbarrier_init_fence() {}
void mbarrier_arrive(std::uint64_t* bar);
void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes);
void mbarrier_expect_tx(std::uint64_t* bar, std::uint32_t bytes);
bool mbarrier_try_wait(std::uint64_t* bar, std::uint32_t parity, MILLRACE_WHERE);
void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity, MILLRACE_WHERE);

inline void fence_proxy_async() {}
enum class CachePolicy : std::uint64_t { kNormal, kEvictFirst, kEvictLast };
inline void tma_prefetch_map(const TensorMap*) {}
void tma_load_2d(void* smem, const TensorMap* map, std::uint64_t* bar, std::int32_t row,
                 std::int32_t col, CachePolicy policy = CachePolicy::kNormal);
void bulk_load(void* smem, const void* global, std::uint32_t bytes, std::uint64_t* bar,
               CachePolicy policy = CachePolicy::kNormal);

template <int R>
void registers_decrease() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0);
}
template <int R>
void registers_increase() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0);
}

// ---- kernels/cuda/ptx_wgmma.cuh ---------------------------------------------------------------

std::uint64_t wgmma_descriptor(const void* smem, std::uint32_t column_offset,
                               std::uint32_t group_offset, Swizzle swizzle);
inline std::uint64_t wgmma_advance(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}
void wgmma_fence();
void wgmma_commit();
template <int Pending>
void wgmma_wait(MILLRACE_WHERE) {
  cuda_emulator::wait_wgmma(Pending, where);
}
template <int Count>
void wgmma_fence_registers(float (&)[Count]) {}
template <int Count>
void wgmma_fence_registers(std::uint32_t (&)[Count]) {}

template <int N, bool TransA = false, bool TransB = false>
void wgmma_m64k16_bf16(float (&d)[N / 2], std::uint64_t a, std::uint64_t b,
                       bool accumulate = true) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 256);
  cuda_emulator::issue_wgmma({N, TransA, TransB, accumulate, nullptr, a, b, d});
}
template <int N, bool TransB = false>
void wgmma_m64k16_bf16(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b,
                       bool accumulate = true) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 256);
  cuda_emulator::issue_wgmma({N, false, TransB, accumulate, a, 0, b, d});
}

}  // namespace millrace::kernels::cuda

#undef MILLRACE_WHERE
