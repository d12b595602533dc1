// Part of kernels/cuda/ptx.cuh: barriers in shared memory, the copy engine (TMA) and register
// hand-over of compute capability 9.0.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {

// ---- mbarrier ---------------------------------------------------------------------------------
// A 64-bit object in shared memory, 8-byte aligned. A phase completes when `count` arrivals were
// made and the bytes expected in it have come; the next phase begins at once. Phases alternate in
// parity, beginning with 0: the first wait is for parity 0.

// By one thread; then mbarrier_init_fence() by it and a barrier of the block before others use it.
__device__ __forceinline__ void mbarrier_init(std::uint64_t* bar, std::uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(count)
               : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
#if MILLRACE_SM90
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive(std::uint64_t* bar) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(
                   smem_address(bar))
               : "memory");
}
// One arrival that also adds `bytes` to what this phase expects.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
#if MILLRACE_SM90
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
          smem_address(bar)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}
// Adds `bytes` to what this phase expects, without arriving.
__device__ __forceinline__ void mbarrier_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
#if MILLRACE_SM90
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
// True when the phase of this parity is complete; may suspend the thread for a while first.
__device__ __forceinline__ bool mbarrier_try_wait(std::uint64_t* bar, std::uint32_t parity) {
#if MILLRACE_SM90
  std::uint32_t complete;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(complete)
      : "r"(smem_address(bar)), "r"(parity)
      : "memory");
  return complete != 0;
#else
  __trap();
  return false;
#endif
}
__device__ __forceinline__ void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity) {
  while (!mbarrier_try_wait(bar, parity)) {
  }
}

// ---- copy engine ------------------------------------------------------------------------------

// fence.proxy.async for shared memory: what this thread wrote by ordinary stores (or read) before
// is ordered before what the copy engine and wgmma do after. Each writing thread, then a barrier.
__device__ __forceinline__ void fence_proxy_async() {
#if MILLRACE_SM90
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// What L2 keeps of a load: weights of a decode step are read once, activations by many blocks.
enum class CachePolicy : std::uint64_t {
  kNormal = 0x1000000000000000,
  kEvictFirst = 0x12F0000000000000,
  kEvictLast = 0x14F0000000000000,
};

__device__ __forceinline__ void tma_prefetch_map(const TensorMap* map) {
#if MILLRACE_SM90
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// cp.async.bulk.tensor.2d: the map's box whose first element is (row, col) to `smem`, swizzled as
// the map says, and box_rows * box_cols * element_bytes counted on `bar`, out-of-range zeros
// included. By one thread. `map` is the address of a __grid_constant__ parameter; `smem` is aligned
// to 128 bytes.
__device__ __forceinline__ void tma_load_2d(void* smem, const TensorMap* map, std::uint64_t* bar,
                                            std::int32_t row, std::int32_t col,
                                            CachePolicy policy = CachePolicy::kNormal) {
#if MILLRACE_SM90
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(smem_address(smem)),
      "l"(map), "r"(smem_address(bar)), "r"(col), "r"(row), "l"(static_cast<std::uint64_t>(policy))
      : "memory");
#else
  __trap();
#endif
}

// cp.async.bulk: `bytes` consecutive bytes, a multiple of 16, both sides 16-byte aligned, counted
// on `bar`. By one thread.
__device__ __forceinline__ void bulk_load(void* smem, const void* global, std::uint32_t bytes,
                                          std::uint64_t* bar,
                                          CachePolicy policy = CachePolicy::kNormal) {
#if MILLRACE_SM90
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(smem_address(smem)),
      "l"(global), "r"(bytes), "r"(smem_address(bar)), "l"(static_cast<std::uint64_t>(policy))
      : "memory");
#else
  __trap();
#endif
}

// ---- registers --------------------------------------------------------------------------------

// setmaxnreg: all warps of a warpgroup give back registers, or wait until so many are theirs. R is
// a multiple of 8 in [24, 256]. The kernel needs __launch_bounds__(threads, 1).
template <int R>
__device__ __forceinline__ void registers_decrease() {
#if MILLRACE_SM90A
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R));
#endif
}
template <int R>
__device__ __forceinline__ void registers_increase() {
#if MILLRACE_SM90A
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R));
#endif
}

}  // namespace millrace::kernels::cuda
