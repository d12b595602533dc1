#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <limits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_params.cuh"

namespace millrace::kernels::cuda {
namespace {

bool aligned(const void* data, std::int64_t stride_bytes, int bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<unsigned>(bytes) == 0 &&
         stride_bytes % bytes == 0;
}

// Whether what a lane stores at once (gemm_epilogue.cuh) is aligned in every row of y.
bool stores_are_aligned(const GemmOutput& y) {
  switch (y.epilogue) {
    case GemmEpilogue::kStoreBf16:
      return aligned(y.data, y.row_stride * 2, 8);
    case GemmEpilogue::kSwiGlu:
      return aligned(y.data, y.row_stride * 2, 4);
    default:
      return aligned(y.data, y.row_stride * 4, 16);
  }
}

constexpr std::int64_t kIntMax = std::numeric_limits<int>::max();

}  // namespace

void launch_gemm(StreamRef stream, const GemmShape& shape, const GemmOutput& y,
                 const GemmWorkspace& workspace, const GemmTuning& tuning, GemmParams params) {
  const bool swiglu = y.epilogue == GemmEpilogue::kSwiGlu;
  CHECK(shape.rows > 0 && shape.cols > 0 && shape.cols % 32 == 0, "N={} K={}", shape.rows,
        shape.cols);
  CHECK(!swiglu || shape.rows % 16 == 0, "N={} of gate and up rows", shape.rows);
  CHECK(y.cols == (swiglu ? shape.rows / 2 : shape.rows), "y has {} columns, N={}", y.cols,
        shape.rows);
  CHECK(aligned(params.x, params.x_stride * 2, 16), "rows of x are not 16-byte aligned, stride {}",
        params.x_stride);
  CHECK(aligned(params.w, 0, 128), "weights are not 128-byte aligned");
  if (shape.tokens == 0) return;

  GemmTuning choices = tuning;
  GemmPlan plan = plan_gemm(shape, current_sm_count(), choices);
  if (plan.spread == GemmSpread::kSplit && workspace.tickets == nullptr) {
    choices.spread = GemmSpread::kWhole;
    plan = plan_gemm(shape, current_sm_count(), choices);
  }
  CHECK(
      plan.partial_bytes <= workspace.partial_bytes && plan.ticket_count <= workspace.ticket_count,
      "workspace of {} bytes, {} tickets; needed {}, {}", workspace.partial_bytes,
      workspace.ticket_count, plan.partial_bytes, plan.ticket_count);
  CHECK(aligned(workspace.partials, 0, 16), "partial sums are not 16-byte aligned");
  CHECK(plan.units() <= kIntMax && shape.tokens <= kIntMax && shape.rows <= kIntMax &&
            shape.cols <= kIntMax,
        "T={} N={} K={}", shape.tokens, shape.rows, shape.cols);

  params.expert_bytes = packed_bytes(shape.format, shape.rows, shape.cols);
  params.n = static_cast<int>(shape.rows);
  params.k = static_cast<int>(shape.cols);
  params.row_tiles = static_cast<int>(plan.row_tiles);
  params.chunks = static_cast<int>(plan.chunks);
  params.split = plan.spread == GemmSpread::kSplit;
  params.epilogue = y.epilogue;
  params.weights_once = shape.tokens <= plan.tile_tokens * shape.groups;
  params.wide_stores = stores_are_aligned(y);
  params.y = y.data;
  params.y_stride = y.row_stride;
  params.partials = workspace.partials;
  params.tickets = workspace.tickets;

  const GemmPath path = tuning.path.value_or(gemm_path());
  CHECK(path == GemmPath::kMma || current_cc() == 90, "wgmma needs compute capability 9.0, not {}",
        current_cc());
  if (path == GemmPath::kWgmma) {
    launch_wgmma(stream, shape.format, plan, params);
  } else {
    launch_mma(stream, shape.format, plan, params);
  }
}

void gemm(StreamRef stream, const GemmArgs& a) {
  CHECK(a.x.cols() == a.w.cols && a.y.rows == a.x.rows(), "x=[{}, {}] w=[{}, {}] y=[{}, {}]",
        a.x.rows(), a.x.cols(), a.w.rows, a.w.cols, a.y.rows, a.y.cols);
  GemmParams params;
  params.x = device_cast(a.x.data);
  params.x_stride = a.x.row_stride;
  params.w = reinterpret_cast<const unsigned char*>(a.w.data);
  params.tokens = static_cast<int>(a.x.rows());
  const GemmShape shape{a.w.format, a.x.rows(), 1, a.w.rows, a.w.cols};
  launch_gemm(stream, shape, a.y, a.workspace, a.tuning, params);
}

}  // namespace millrace::kernels::cuda
