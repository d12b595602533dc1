#include "kernels/cuda/rms_norm.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxVecs = 8;  // 8 x 8 x 256 = 16384 channels

// The sum over the block, the same in every thread: lanes in a butterfly, then warps in order.
__device__ float block_sum(float x, float* warp_sums) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(0xffffffffU, x, step));
  }
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = warp_sums[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum = __fadd_rn(sum, warp_sums[w]);
  return sum;
}

// A block for each row; a thread has channels [8 (i * 256 + thread), + 8) for i < kVecs, and keeps
// them in registers between the sum and the scaling.
template <int kVecs>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const float* x, std::int64_t x_stride, const float* weight, float eps,
                    const std::int32_t* rows, int d, __nv_bfloat16* out, std::int64_t out_stride) {
  await_previous_kernel();
  __shared__ float warp_sums[kWarps];
  const std::int64_t from = rows == nullptr ? static_cast<int>(blockIdx.x) : rows[blockIdx.x];
  out += blockIdx.x * out_stride;
  Vec8 values[kVecs];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int col = (i * kThreads + static_cast<int>(threadIdx.x)) * kVec;
    values[i] = Vec8{};
    if (col < d && from >= 0) values[i] = load8(x + from * x_stride + col);
#pragma unroll
    for (int j = 0; j < kVec; ++j) squares = __fmaf_rn(values[i].v[j], values[i].v[j], squares);
  }
  const float mean = __fdiv_rn(block_sum(squares, warp_sums), static_cast<float>(d));
  const float scale = __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(mean, eps)));
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int col = (i * kThreads + static_cast<int>(threadIdx.x)) * kVec;
    if (col >= d) continue;
    const Vec8 w = load8(weight + col);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      values[i].v[j] = __fmul_rn(__fmul_rn(values[i].v[j], scale), w.v[j]);
    }
    store8(out + col, values[i]);
  }
}

template <int kVecs>
void start(StreamRef stream, const RmsNormArgs& a) {
  launch(rms_norm_kernel<kVecs>, {dim3(static_cast<unsigned>(a.out.rows())), dim3(kThreads)},
         stream, a.x.data, a.x.row_stride, a.weight, a.eps, a.rows, static_cast<int>(a.x.cols()),
         device_cast(a.out.data), a.out.row_stride);
}

}  // namespace

void rms_norm(StreamRef stream, const RmsNormArgs& a) {
  const std::int64_t d = a.x.cols();
  CHECK(d > 0 && d % kVec == 0 && d <= kMaxVecs * kVec * kThreads && a.out.cols() == d &&
            (a.rows != nullptr || a.out.rows() <= a.x.rows()) && a.x.row_stride % 4 == 0 &&
            a.out.row_stride % kVec == 0 && a.eps > 0,
        "x=[{}, {}] stride {} out=[{}, {}] stride {} eps={}", a.x.rows(), d, a.x.row_stride,
        a.out.rows(), a.out.cols(), a.out.row_stride, a.eps);
  const std::int64_t vecs = (d + kVec * kThreads - 1) / (kVec * kThreads);
  if (vecs == 1) return start<1>(stream, a);
  if (vecs == 2) return start<2>(stream, a);
  if (vecs <= 4) return start<4>(stream, a);
  start<kMaxVecs>(stream, a);
}

}  // namespace millrace::kernels::cuda
