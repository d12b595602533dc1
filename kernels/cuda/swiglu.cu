#include "kernels/cuda/swiglu.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const __nv_bfloat16* gate, std::int64_t gate_stride, const __nv_bfloat16* up,
                  std::int64_t up_stride, __nv_bfloat16* out, std::int64_t out_stride, int width) {
  await_previous_kernel();
  const std::int64_t t = blockIdx.x;
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kVec;
  if (col >= width) return;
  Vec8 x = load8(gate + t * gate_stride + col);
  const Vec8 u = load8(up + t * up_stride + col);
#pragma unroll
  for (int i = 0; i < kVec; ++i) x.v[i] = __fmul_rn(silu_f32(x.v[i]), u.v[i]);
  store8(out + t * out_stride + col, x);
}

}  // namespace

void swiglu(StreamRef stream, MatrixView<const BFloat16> gate, MatrixView<const BFloat16> up,
            MatrixView<BFloat16> out) {
  const std::int64_t width = out.cols();
  CHECK(width > 0 && width % kVec == 0 && gate.cols() == width && up.cols() == width &&
            gate.rows() == out.rows() && up.rows() == out.rows() && gate.row_stride % kVec == 0 &&
            up.row_stride % kVec == 0 && out.row_stride % kVec == 0,
        "gate=[{}, {}] up=[{}, {}] out=[{}, {}]", gate.rows(), gate.cols(), up.rows(), up.cols(),
        out.rows(), width);
  const auto column_blocks = static_cast<unsigned>((width / kVec + kThreads - 1) / kThreads);
  launch(swiglu_kernel, {dim3(static_cast<unsigned>(out.rows()), column_blocks), dim3(kThreads)},
         stream, device_cast(gate.data), gate.row_stride, device_cast(up.data), up.row_stride,
         device_cast(out.data), out.row_stride, static_cast<int>(width));
}

}  // namespace millrace::kernels::cuda
