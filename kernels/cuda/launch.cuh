// How .cu files start kernels and declare dynamic shared memory. Its twin in
// tests/cuda_emulator/include compiles the same files for the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"

// `unsigned char* name`: the block's dynamic shared memory, aligned to 1024 bytes. Once per kernel,
// at function scope. Uninitialised.
#define MILLRACE_DYNAMIC_SMEM(name)                                        \
  extern __shared__ __align__(1024) unsigned char millrace_dynamic_smem[]; \
  unsigned char* const name = millrace_dynamic_smem

namespace millrace::kernels::cuda {

// The first call of every kernel, by all its threads, before it reads or writes what another one
// may write or read: on a stream that overlaps kernels (StreamRef::overlap) it has been started
// early. When it returns, all kernels in front have ended, for each of them has waited likewise;
// and the kernel behind may be started.
__device__ __forceinline__ void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid{1};
  dim3 block{1};
  std::size_t smem_bytes = 0;  // dynamic; above 48 KiB launch() makes the opt-in
  // Blocks that a multiprocessor of Hopper or later is meant to run at once; 0: however many. With
  // more than one, launch() asks for the largest part of the multiprocessor's memory as shared
  // memory, since the driver's own choice may have room for fewer.
  int blocks_per_sm = 0;
  // Where the launch stands, for error messages.
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

namespace detail {
// In runtime.cc. Throws CudaError("launch file:line", ...).
void launch_kernel(const void* kernel, const LaunchShape& shape, StreamRef stream, void** args);
}  // namespace detail

// launch(kernel, {grid, block, smem_bytes}, stream, args...): asynchronous, in stream order,
// capturable. A grid without blocks launches nothing. Arguments convert to the kernel's parameters.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, StreamRef stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each kernel parameter");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  std::tuple<std::remove_const_t<Params>...> values{std::forward<Args>(args)...};
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        detail::launch_kernel(reinterpret_cast<const void*>(kernel), shape, stream, pointers);
      },
      values);
}

// The same memory as host headers and device code name it.
__host__ __device__ inline __nv_bfloat16* device_cast(BFloat16* p) {
  return reinterpret_cast<__nv_bfloat16*>(p);
}
__host__ __device__ inline const __nv_bfloat16* device_cast(const BFloat16* p) {
  return reinterpret_cast<const __nv_bfloat16*>(p);
}

}  // namespace millrace::kernels::cuda
