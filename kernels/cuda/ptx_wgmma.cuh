// Part of kernels/cuda/ptx.cuh: wgmma of compute capability 9.0a. A warpgroup, four warps of which the
// first has an index divisible by four, multiplies together; operands come from shared memory through
// 64-bit descriptors, accumulators stay in registers.
//
// Order of calls, by all 128 threads: wgmma_fence(), one or more wgmma_m64k16_bf16(), wgmma_commit(),
// wgmma_wait<Pending>(). Before the wait that covers them, accumulators (and an A in registers) may
// not be touched and shared operands may not be overwritten. Shared memory written by ordinary stores
// needs fence_proxy_async() and a barrier first.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {

// An operand tile, A [64, 16] or B [N, 16], as wgmma finds it in dynamic shared memory. Offsets are
// bytes, multiples of 16; a group is 8 rows (or 8 k).
//   K contiguous (the usual: rows are outputs or tokens, K runs along a row)
//     swizzled: rows of 32, 64 or 128 bytes; group_offset leads from 8 rows to the next 8 (8 row
//       lengths when they follow each other); column_offset is ignored. To step along K inside the
//       row, advance the descriptor by 32 bytes (16 values): the swizzle follows the address.
//     not swizzled: core matrices of 8 rows x 16 bytes, 128 consecutive bytes each; column_offset
//       leads from one to the next along K, group_offset along the rows.
//   M or N contiguous (TransA, TransB: a row holds one k)
//     swizzled: rows of 32, 64 or 128 bytes of N; group_offset leads from 8 k to the next 8,
//       column_offset from one row length of N to the next.
//     not swizzled: core matrices of 8 k x 16 bytes of N; column_offset leads from 8 k to the next 8,
//       group_offset along N.
// Swizzled tiles start at a multiple of 8 row lengths.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(const void* smem,
                                                          std::uint32_t column_offset,
                                                          std::uint32_t group_offset,
                                                          Swizzle swizzle) {
  // Layout type: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes.
  const std::uint64_t layout = (4U - static_cast<std::uint32_t>(swizzle)) & 3U;
  return static_cast<std::uint64_t>((smem_address(smem) & 0x3ffffU) >> 4) |
         static_cast<std::uint64_t>((column_offset & 0x3ffffU) >> 4) << 16 |
         static_cast<std::uint64_t>((group_offset & 0x3ffffU) >> 4) << 32 | layout << 62;
}
// The same tile `bytes` further on.
__device__ __forceinline__ std::uint64_t wgmma_advance(std::uint64_t descriptor,
                                                       std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
#if MILLRACE_SM90A
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#if MILLRACE_SM90A
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most Pending of the newest groups are unfinished.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
#if MILLRACE_SM90A
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}
// Keeps the compiler from moving other uses of these registers across this point: before
// wgmma_fence() and after wgmma_wait().
template <int Count>
__device__ __forceinline__ void wgmma_fence_registers(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// The same for operands: written before wgmma_fence(), and not after it.
template <int Count>
__device__ __forceinline__ void wgmma_fence_registers(std::uint32_t (&a)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#if MILLRACE_SM90A
// The assembler wants every accumulator by name: lists of operands, and lists of their numbers.
#define MILLRACE_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define MILLRACE_D8(i) MILLRACE_D4(i), MILLRACE_D4((i) + 4)
#define MILLRACE_D16(i) MILLRACE_D8(i), MILLRACE_D8((i) + 8)
#define MILLRACE_D32(i) MILLRACE_D16(i), MILLRACE_D16((i) + 16)
#define MILLRACE_D48(i) MILLRACE_D32(i), MILLRACE_D16((i) + 32)
#define MILLRACE_D64(i) MILLRACE_D32(i), MILLRACE_D32((i) + 32)
#define MILLRACE_D128(i) MILLRACE_D64(i), MILLRACE_D64((i) + 64)
#define MILLRACE_R4 "%0, %1, %2, %3"
#define MILLRACE_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MILLRACE_R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MILLRACE_R32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MILLRACE_R48 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MILLRACE_R64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MILLRACE_R128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// n is the number of accumulators of a thread; the numbers after it are those of the operands that
// follow them.
#define MILLRACE_WGMMA_SHARED(N, n, a_, b_, p_, ta_, tb_)                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MILLRACE_R##n "}, "   \
               "%" #a_ ", %" #b_ ", p, 1, 1, %" #ta_ ", %" #tb_ ";\n}"                            \
               : MILLRACE_D##n(0)                                                                 \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TransA ? 1 : 0),          \
                 "n"(TransB ? 1 : 0))
#define MILLRACE_WGMMA_REGISTERS(N, n, a0_, a1_, a2_, a3_, b_, p_, tb_)                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MILLRACE_R##n "}, "   \
               "{%" #a0_ ", %" #a1_ ", %" #a2_ ", %" #a3_ "}, %" #b_ ", p, 1, 1, %" #tb_ ";\n}"   \
               : MILLRACE_D##n(0)                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                              \
                 "r"(static_cast<int>(accumulate)), "n"(TransB ? 1 : 0))
#endif

// d += A * B^T (or d = A * B^T where `accumulate` is false), A [64, 16] and B [N, 16] in shared
// memory. With w the warp in its warpgroup, g = lane/4 and q = lane%4, d[4j + 2h + c] is
// D[16w + g + 8h][8j + 2q + c].
template <int N, bool TransA = false, bool TransB = false>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[N / 2], std::uint64_t a,
                                                  std::uint64_t b, bool accumulate = true) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 256);
#if MILLRACE_SM90A
  if constexpr (N == 8) MILLRACE_WGMMA_SHARED(8, 4, 4, 5, 6, 7, 8);
  if constexpr (N == 16) MILLRACE_WGMMA_SHARED(16, 8, 8, 9, 10, 11, 12);
  if constexpr (N == 32) MILLRACE_WGMMA_SHARED(32, 16, 16, 17, 18, 19, 20);
  if constexpr (N == 64) MILLRACE_WGMMA_SHARED(64, 32, 32, 33, 34, 35, 36);
  if constexpr (N == 96) MILLRACE_WGMMA_SHARED(96, 48, 48, 49, 50, 51, 52);
  if constexpr (N == 128) MILLRACE_WGMMA_SHARED(128, 64, 64, 65, 66, 67, 68);
  if constexpr (N == 256) MILLRACE_WGMMA_SHARED(256, 128, 128, 129, 130, 131, 132);
#else
  __trap();
#endif
}

// The same with A in registers: each warp passes its 16 rows as mma_m16n8k16_bf16 takes them.
template <int N, bool TransB = false>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[N / 2], const std::uint32_t (&a)[4],
                                                  std::uint64_t b, bool accumulate = true) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 256);
#if MILLRACE_SM90A
  if constexpr (N == 8) MILLRACE_WGMMA_REGISTERS(8, 4, 4, 5, 6, 7, 8, 9, 10);
  if constexpr (N == 16) MILLRACE_WGMMA_REGISTERS(16, 8, 8, 9, 10, 11, 12, 13, 14);
  if constexpr (N == 32) MILLRACE_WGMMA_REGISTERS(32, 16, 16, 17, 18, 19, 20, 21, 22);
  if constexpr (N == 64) MILLRACE_WGMMA_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37, 38);
  if constexpr (N == 96) MILLRACE_WGMMA_REGISTERS(96, 48, 48, 49, 50, 51, 52, 53, 54);
  if constexpr (N == 128) MILLRACE_WGMMA_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69, 70);
  if constexpr (N == 256) MILLRACE_WGMMA_REGISTERS(256, 128, 128, 129, 130, 131, 132, 133, 134);
#else
  __trap();
#endif
}

#if MILLRACE_SM90A
#undef MILLRACE_WGMMA_SHARED
#undef MILLRACE_WGMMA_REGISTERS
#undef MILLRACE_D4
#undef MILLRACE_R4
#undef MILLRACE_D8
#undef MILLRACE_R8
#undef MILLRACE_D16
#undef MILLRACE_R16
#undef MILLRACE_D32
#undef MILLRACE_R32
#undef MILLRACE_D48
#undef MILLRACE_R48
#undef MILLRACE_D64
#undef MILLRACE_R64
#undef MILLRACE_D128
#undef MILLRACE_R128
#endif

}  // namespace millrace::kernels::cuda
