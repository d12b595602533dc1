// Between the launchers' checks and the kernels of the two paths.
#pragma once

#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/stream_ref.h"

namespace millrace::kernels::cuda {

struct GemmParams;

// Fills what depends on the plan and y, checks workspace and shapes, and starts the path's kernel.
void launch_gemm(StreamRef stream, const GemmShape& shape, const GemmOutput& y,
                 const GemmWorkspace& workspace, const GemmTuning& tuning, GemmParams params);

// The kernels of one path: gemm_mma.cu, gemm_wgmma.cu.
void launch_mma(StreamRef stream, WeightFormat format, const GemmPlan& plan,
                const GemmParams& params);
void launch_wgmma(StreamRef stream, WeightFormat format, const GemmPlan& plan,
                  const GemmParams& params);

}  // namespace millrace::kernels::cuda
