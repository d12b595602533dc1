#include "kernels/cuda/grouped_gemm.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_params.cuh"

namespace millrace::kernels::cuda {

void grouped_gemm(StreamRef stream, const GroupedGemmArgs& a) {
  CHECK(a.experts > 0 && a.experts <= kMaxGroupedExperts, "experts={}", a.experts);
  CHECK(a.offsets != nullptr && a.x.cols() == a.w.cols && a.y.rows >= 0 && a.max_rows >= 0,
        "x=[{}, {}] w=[{}, {}] max_rows={}", a.x.rows(), a.x.cols(), a.w.rows, a.w.cols,
        a.max_rows);
  GemmParams params;
  params.x = device_cast(a.x.data);
  params.x_stride = a.x.row_stride;
  params.x_rows = a.x_rows;
  params.w = reinterpret_cast<const unsigned char*>(a.w.data);
  params.offsets = a.offsets;
  params.experts = a.experts;
  const GemmShape shape{a.w.format, a.max_rows, a.experts, a.w.rows, a.w.cols};
  launch_gemm(stream, shape, a.y, a.workspace, a.tuning, params);
}

GemmWorkspaceSize grouped_gemm_workspace(WeightFormat format, std::int64_t max_rows,
                                         std::int32_t experts, std::int64_t rows,
                                         std::int64_t cols) {
  return plan_workspace({format, max_rows, experts, rows, cols}, current_sm_count());
}

}  // namespace millrace::kernels::cuda
