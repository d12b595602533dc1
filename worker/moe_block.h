// Sparse mixture of experts (Transformers' Lfm2MoeSparseMoeBlock): the router on the token's own
// lane, the experts wherever they live, the weighted sum back on the token's lane.
#pragma once

#include <span>
#include <vector>

#include "parallel/expert_parallel.h"
#include "worker/step_context.h"
#include "worker/weights.h"

namespace millrace {

// How this step's tokens reach the experts: the same on every lane of the stage.
struct MoeExchange {
  parallel::ExpertExchange& exchange;
  parallel::DispatchPath path;
  std::int64_t bucket;
  std::uint64_t& exchange_ns;            // grows by the time spent in the exchange
  std::span<std::uint64_t> expert_rows;  // [MoE layers of the stage x slots]: grow by the rows run
};

// The weights of one MoE layer, its experts' matrices side by side as the grouped GEMM takes them.
struct MoeLayer {
  explicit MoeLayer(const MoeWeights& weights);

  const MoeWeights& weights;
  std::vector<kernels::WeightView> w1, w3, w2;  // [slots] each
};

// hidden += moe(normed). A collective of the stage: every lane calls it for every MoE layer, also
// with no tokens. `homes` is the layer's placement, [E]; `index` counts the stage's MoE layers.
void moe_block(const StepContext& step, const MoeLayer& layer, std::size_t index,
               const MoeExchange& exchange, std::span<const parallel::ExpertHome> homes);

}  // namespace millrace
