// Kernel launches and tensor maps over the CUDA runtime; the rest is in runtime.cc.
#include <cuda.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/tensor_map.h"

namespace millrace::kernels::cuda {
namespace {

// A block gets 48 KiB without asking, its static memory included, of which kernels with dynamic
// memory have at most 32.
constexpr std::size_t kPlainSmemBytes = 16 << 10;

// A kernel on a device: what it was given, and what it is.
struct KernelState {
  std::size_t smem_bytes = kPlainSmemBytes;
  bool all_shared = false;
  std::optional<bool> waits;
};

// Gives the kernel what it needs on the current device, once: a higher limit of dynamic shared
// memory, and all of the multiprocessor's memory that can be shared memory.
cudaError_t grant(KernelState& state, const void* kernel, const LaunchShape& shape) {
  if (shape.smem_bytes > state.smem_bytes) {
    const cudaError_t code = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.smem_bytes));
    if (code != cudaSuccess) return code;
    state.smem_bytes = shape.smem_bytes;
  }
  if (shape.blocks_per_sm > 1 && !state.all_shared) {
    const cudaError_t code = cudaFuncSetAttribute(
        kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (code != cudaSuccess) return code;
    state.all_shared = true;
  }
  return cudaSuccess;
}

// Whether the kernel as it is on the current device has the wait of await_previous_kernel():
// started early without it, as code of an older architecture would be, it would race with the one
// in front.
bool waits(const void* kernel) {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         std::min(attributes.ptxVersion, attributes.binaryVersion) >= 90;
}

// Grants, and says into `early` whether the launch may begin before the kernel in front has ended.
cudaError_t prepare(const void* kernel, const LaunchShape& shape, bool overlap, bool& early) {
  early = false;
  if (!overlap && shape.smem_bytes <= kPlainSmemBytes && shape.blocks_per_sm <= 1)
    return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, KernelState> kernels;
  const std::lock_guard lock(mutex);
  KernelState& state = kernels[{current_device(), kernel}];
  if (overlap) {
    if (!state.waits) state.waits = waits(kernel);
    early = *state.waits;
  }
  return grant(state, kernel, shape);
}

std::string launch_name(const LaunchShape& shape) {
  const std::string_view path = shape.file;
  return fmt::format("launch {}:{}", path.substr(path.rfind('/') + 1), shape.line);
}

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                            12000, cudaEnableDefault, &result);
  if (code != cudaSuccess || result != cudaDriverEntryPointSuccess || function == nullptr) {
    throw CudaError("cuTensorMapEncodeTiled", code == cudaSuccess ? cudaErrorNotSupported : code,
                    "the driver does not have it");
  }
  return reinterpret_cast<EncodeTiled>(function);
}

}  // namespace

void detail::launch_kernel(const void* kernel, const LaunchShape& shape, StreamRef stream,
                           void** args) {
  bool early = false;
  cudaError_t code = prepare(kernel, shape, stream.overlap, early);
  if (code == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.smem_bytes;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    config.attrs = &overlap;
    config.numAttrs = early ? 1 : 0;
    code = cudaLaunchKernelExC(&config, kernel, args);
  }
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError(launch_name(shape), code, cudaGetErrorString(code));
}

TensorMap make_tensor_map(const TensorMapSpec& spec) {
  check_tensor_map(spec);
  static const EncodeTiled encode = encode_tiled();
  const CUtensorMapDataType type = spec.element_bytes == 2   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : spec.element_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                                             : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const std::int64_t stride = spec.row_stride == 0 ? spec.cols : spec.row_stride;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(spec.cols),
                              static_cast<cuuint64_t>(spec.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride * spec.element_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(spec.box_cols),
                            static_cast<cuuint32_t>(spec.box_rows)};
  const cuuint32_t steps[] = {1, 1};
  // The enumerators of Swizzle are in the driver's order: none, 32, 64, 128 bytes.
  static_assert(CU_TENSOR_MAP_SWIZZLE_NONE == 0 && CU_TENSOR_MAP_SWIZZLE_128B == 3);
  TensorMap map;
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  // Makes the device's context current, which the driver wants and no call before this may have
  // done.
  set_device(current_device());
  const CUresult code =
      encode(reinterpret_cast<CUtensorMap*>(map.opaque), type, 2, const_cast<void*>(spec.data),
             sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             static_cast<CUtensorMapSwizzle>(spec.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) {
    throw CudaError("cuTensorMapEncodeTiled", static_cast<int>(code), "the driver refused the map");
  }
  return map;
}

}  // namespace millrace::kernels::cuda
