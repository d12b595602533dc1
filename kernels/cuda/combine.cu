#include "kernels/cuda/combine.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxTopK = 64;

// A block for each token (times column blocks), a thread for eight channels.
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __nv_bfloat16* y, std::int64_t y_stride, const std::int32_t* rows,
                   const float* weights, int top_k, float* hidden, std::int64_t hidden_stride,
                   int d) {
  await_previous_kernel();
  const std::int64_t t = blockIdx.x;
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kVec;
  if (col >= d) return;
  rows += t * top_k;
  weights += t * top_k;
  Vec8 sum{};
  bool any = false;
#pragma unroll 4
  for (int k = 0; k < top_k; ++k) {
    const std::int32_t row = rows[k];
    if (row < 0) continue;
    any = true;
    const Vec8 x = load8(y + row * y_stride + col);
    const float w = weights[k];
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum.v[i] = __fmaf_rn(w, x.v[i], sum.v[i]);
  }
  if (!any) return;
  float* out = hidden + t * hidden_stride + col;
  const Vec8 residual = load8(out);
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum.v[i] = __fadd_rn(residual.v[i], sum.v[i]);
  store8(out, sum);
}

}  // namespace

void combine(StreamRef stream, const CombineArgs& a) {
  const std::int64_t d = a.hidden.cols();
  const std::int64_t top_k = a.rows.cols();
  CHECK(d > 0 && d % kVec == 0 && a.y.cols() == d && a.y.row_stride % kVec == 0 &&
            a.hidden.row_stride % 4 == 0,
        "y=[{}, {}] stride {} hidden=[{}, {}] stride {}", a.y.rows(), a.y.cols(), a.y.row_stride,
        a.hidden.rows(), d, a.hidden.row_stride);
  CHECK(top_k >= 1 && top_k <= kMaxTopK && a.weights.cols() == top_k &&
            a.rows.rows() == a.hidden.rows() && a.weights.rows() == a.hidden.rows() &&
            a.rows.row_stride == top_k && a.weights.row_stride == top_k,
        "rows=[{}, {}] weights=[{}, {}] T={}", a.rows.rows(), top_k, a.weights.rows(),
        a.weights.cols(), a.hidden.rows());
  const auto column_blocks = static_cast<unsigned>((d / kVec + kThreads - 1) / kThreads);
  launch(combine_kernel,
         {dim3(static_cast<unsigned>(a.hidden.rows()), column_blocks), dim3(kThreads)}, stream,
         device_cast(a.y.data), a.y.row_stride, a.rows.data, a.weights.data,
         static_cast<int>(top_k), a.hidden.data, a.hidden.row_stride, static_cast<int>(d));
}

}  // namespace millrace::kernels::cuda
