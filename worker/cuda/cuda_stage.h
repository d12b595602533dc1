// The layers of one pipeline stage on a device: the order of worker/lfm2.h, every op a launch on
// one stream. Nothing allocates or waits (but kAllToAllExact, parallel/device_expert_exchange.h),
// and what varies between steps of equal padded size is read from device memory, so a step can be
// recorded as a graph.
#pragma once

#include <cstdint>

#include "kernels/cuda/runtime.h"
#include "parallel/device_expert_exchange.h"
#include "worker/cuda/device_shape.h"
#include "worker/cuda/device_state.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/device_workspace.h"
#include "worker/cuda/step_inputs.h"

namespace millrace {

// What the host decides of a step.
struct StageStep {
  StepInputs in;  // device pointers
  kernels::cuda::AttentionBatch attention = kernels::cuda::AttentionBatch::kMixed;
  parallel::DispatchPath path = parallel::DispatchPath::kLocal;
  std::int64_t bucket = 0;  // of the exchange: the same on every lane
};

class CudaStage {
 public:
  // Everything must outlive this. `exchange` is null for dense models.
  CudaStage(const DeviceShape& shape, const DeviceWeightMap& weights, const DeviceState& state,
            const DeviceWorkspace& workspace, parallel::DeviceExpertExchange* exchange);

  // hidden [rows, D] from the ids (first stage).
  void embed(kernels::cuda::StreamRef stream, const StageStep& step);
  // hidden through the stage's layers. Collective over the lanes, also without rows.
  void layers(kernels::cuda::StreamRef stream, const StageStep& step);
  // Logits of the rows wanted and what is drawn from them, into workspace.samples (last stage).
  void sample(kernels::cuda::StreamRef stream, const StageStep& step);

  kernels::MatrixView<float> hidden(std::int64_t rows) const;

 private:
  void norm(kernels::cuda::StreamRef stream, std::int64_t rows, const float* weight);
  void short_conv(kernels::cuda::StreamRef stream, const StageStep& step, const DeviceConv& weights,
                  std::size_t index);
  void attention(kernels::cuda::StreamRef stream, const StageStep& step,
                 const DeviceAttention& weights, std::size_t index);
  void dense_ffn(kernels::cuda::StreamRef stream, std::int64_t rows, const DeviceFfn& weights);
  void moe(kernels::cuda::StreamRef stream, const StageStep& step, const DeviceMoe& weights,
           std::size_t index);
  void route(kernels::cuda::StreamRef stream, const StageStep& step, const DeviceMoe& weights);
  void run_experts(kernels::cuda::StreamRef stream, const DeviceMoe& weights,
                   const parallel::DeviceExpertExchange::Received& received);
  void gemm(kernels::cuda::StreamRef stream, kernels::MatrixView<const kernels::cuda::BFloat16> x,
            const kernels::cuda::PackedWeight& w, const kernels::cuda::GemmOutput& y);
  kernels::MatrixView<kernels::cuda::BFloat16> normed(std::int64_t rows) const;
  kernels::cuda::AttentionTokens tokens(const StageStep& step) const;

  const DeviceShape& shape_;
  const ModelConfig& model_;
  const DeviceWeightMap& weights_;
  const DeviceState& state_;
  const DeviceWorkspace& work_;
  parallel::DeviceExpertExchange* exchange_;
};

}  // namespace millrace
