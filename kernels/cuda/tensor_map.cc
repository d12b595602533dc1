#include "kernels/cuda/tensor_map.h"

#include <fmt/format.h>

#include "kernels/cuda/runtime.h"

namespace millrace::kernels::cuda {

// The rules of cuTensorMapEncodeTiled that our maps can break; the driver only says "invalid
// value".
void check_tensor_map(const TensorMapSpec& spec) {
  const auto require = [](bool holds, const std::string& rule) {
    if (!holds) throw CudaError("cuTensorMapEncodeTiled", kErrorInvalidValue, rule);
  };
  const std::int64_t stride = spec.row_stride == 0 ? spec.cols : spec.row_stride;
  const int box_bytes = spec.box_cols * spec.element_bytes;
  require(spec.element_bytes == 1 || spec.element_bytes == 2 || spec.element_bytes == 4,
          fmt::format("elements of {} bytes", spec.element_bytes));
  require(spec.data != nullptr && reinterpret_cast<std::uintptr_t>(spec.data) % 16 == 0,
          "the matrix must start at a multiple of 16 bytes");
  require(spec.rows >= 1 && spec.cols >= 1 && spec.rows <= (std::int64_t{1} << 32) &&
              spec.cols <= (std::int64_t{1} << 32),
          fmt::format("a matrix of {} x {}", spec.rows, spec.cols));
  require(stride >= spec.cols && stride * spec.element_bytes % 16 == 0 &&
              stride * spec.element_bytes < (std::int64_t{1} << 40),
          fmt::format("a row stride of {} elements", stride));
  require(spec.box_rows >= 1 && spec.box_rows <= 256 && spec.box_cols >= 1 &&
              spec.box_cols <= 256 && box_bytes % 16 == 0,
          fmt::format("a box of {} x {}", spec.box_rows, spec.box_cols));
  require(spec.swizzle == Swizzle::kNone || box_bytes == 16 << static_cast<int>(spec.swizzle),
          fmt::format("rows of a box of {} bytes do not fit the swizzle", box_bytes));
}

}  // namespace millrace::kernels::cuda
