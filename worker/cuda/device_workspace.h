// The buffers of one forward pass on a device, sized once for the largest step.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/types.h"
#include "worker/cuda/device_arena.h"
#include "worker/cuda/device_shape.h"

namespace millrace {

// Rows are those of the step; R the rows of this lane's experts.
struct DeviceWorkspace {
  float* hidden = nullptr;                    // [T, D], the residual stream
  kernels::cuda::BFloat16* normed = nullptr;  // [T, D]
  kernels::cuda::BFloat16* bcx = nullptr;     // [T, 3D]
  kernels::cuda::BFloat16* mixed = nullptr;   // [T, max(D, H * head_dim)]
  kernels::cuda::BFloat16* qkv = nullptr;     // [T, (H + 2G) * head_dim]
  float* cos = nullptr;                       // [T, head_dim / 2]
  float* sin = nullptr;
  float* inverse_frequencies = nullptr;           // [head_dim / 2], constant
  kernels::cuda::BFloat16* ffn = nullptr;         // dense: [T, ff]; experts: [R, F]
  float* router = nullptr;                        // [T, E]
  std::int32_t* expert_ids = nullptr;             // [T, K]
  float* expert_weights = nullptr;                // [T, K]
  kernels::cuda::BFloat16* expert_out = nullptr;  // [R, D]
  // [MoE layers of the stage, offsets_stride], slots + 1 used: kept until the step's result is
  // read, for metrics.
  std::int32_t* expert_offsets = nullptr;
  std::int64_t moe_layers = 0;
  std::int64_t offsets_stride = 0;
  kernels::cuda::BFloat16* selected = nullptr;     // [logit rows, D], final norm of the rows wanted
  float* logits = nullptr;                         // [logit rows, V]
  float* bias_scratch = nullptr;                   // [logit rows, kMaxLogitBias]
  kernels::cuda::SampleResult* samples = nullptr;  // [most logit rows of a step]
  kernels::cuda::AttentionWorkspace attention;
  kernels::cuda::GemmWorkspace gemm;
};

void lay_out_workspace(ArenaCursor& cursor, const DeviceShape& shape, DeviceWorkspace& workspace);

}  // namespace millrace
