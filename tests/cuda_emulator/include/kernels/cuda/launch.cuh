// The emulator's twin of kernels/cuda/launch.cuh: it comes first in the include path, so .cu files
// compiled for the CPU find this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"

#define MILLRACE_DYNAMIC_SMEM(name) \
  unsigned char* const name = ::millrace::cuda_emulator::dynamic_smem()

namespace millrace::cuda_emulator {
unsigned char* dynamic_smem();
}

namespace millrace::kernels::cuda {

// Counted: on a stream that overlaps kernels, a kernel in which a thread does without is an error.
void await_previous_kernel();

struct LaunchShape {
  dim3 grid{1};
  dim3 block{1};
  std::size_t smem_bytes = 0;
  int blocks_per_sm = 0;
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

namespace detail {
// `body` is one thread's run of the kernel.
void launch_kernel(const LaunchShape& shape, StreamRef stream, std::function<void()> body);
}  // namespace detail

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, StreamRef stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each kernel parameter");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  detail::launch_kernel(shape, stream,
                        [kernel, values = std::tuple<std::remove_const_t<Params>...>{
                                     std::forward<Args>(args)...}] { std::apply(kernel, values); });
}

inline __nv_bfloat16* device_cast(BFloat16* p) { return reinterpret_cast<__nv_bfloat16*>(p); }
inline const __nv_bfloat16* device_cast(const BFloat16* p) {
  return reinterpret_cast<const __nv_bfloat16*>(p);
}

}  // namespace millrace::kernels::cuda
