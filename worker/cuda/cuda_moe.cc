// The mixture of experts of worker/cuda/cuda_stage.h.
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/router.h"
#include "worker/cuda/cuda_stage.h"

namespace millrace {

namespace cuda = kernels::cuda;

using cuda::GemmOutput;
using cuda::StreamRef;

void CudaStage::route(StreamRef stream, const StageStep& step, const DeviceMoe& weights) {
  const std::int64_t t = step.in.rows;
  const auto logits = kernels::matrix(work_.router, t, std::int64_t{model_.num_experts});
  for (std::size_t i = 0; i < weights.router.size(); ++i) {
    gemm(stream, normed(t), weights.router[i],
         i == 0 ? GemmOutput::store(logits) : GemmOutput::add(logits));
  }
  cuda::RouterArgs args;
  args.logits = logits;
  args.bias = weights.bias;
  args.normalize = model_.norm_topk_prob;
  args.scaling_factor = model_.routed_scaling_factor;
  args.sequences = step.in.slots;
  args.ids = kernels::matrix(work_.expert_ids, t, std::int64_t{model_.num_experts_per_tok});
  args.weights = kernels::matrix(work_.expert_weights, t, std::int64_t{model_.num_experts_per_tok});
  cuda::router(stream, args);
}

// expert_out [R, D] of the rows that the dispatch brought, grouped by local expert.
void CudaStage::run_experts(StreamRef stream, const DeviceMoe& weights,
                            const parallel::DeviceExpertExchange::Received& received) {
  if (received.max_rows == 0 || weights.slots == 0) return;
  const auto gate =
      kernels::matrix(work_.ffn, received.max_rows, std::int64_t{model_.moe_intermediate_size});
  cuda::GroupedGemmArgs args;
  args.x = received.x;
  args.x_rows = received.x_rows;
  args.offsets = received.offsets;
  args.experts = weights.slots;
  args.max_rows = received.max_rows;
  args.w = weights.experts.w13;
  args.y = GemmOutput::swiglu(gate);
  args.workspace = work_.gemm;
  cuda::grouped_gemm(stream, args);

  args.x = gate;
  args.x_rows = nullptr;
  args.w = weights.experts.w2;
  args.y = GemmOutput::store(
      kernels::matrix(work_.expert_out, received.max_rows, std::int64_t{model_.hidden_size}));
  cuda::grouped_gemm(stream, args);
}

void CudaStage::moe(StreamRef stream, const StageStep& step, const DeviceMoe& weights,
                    std::size_t index) {
  const std::int64_t t = step.in.rows;
  const std::int64_t top_k = model_.num_experts_per_tok;
  if (t > 0) route(stream, step, weights);
  parallel::DeviceExpertExchange::Tokens tokens;
  tokens.layer = index;
  tokens.path = step.path;
  tokens.bucket = step.bucket;
  tokens.x = normed(t);
  tokens.ids = kernels::matrix<const std::int32_t>(work_.expert_ids, t, top_k);
  tokens.offsets = work_.expert_offsets + static_cast<std::int64_t>(index) * work_.offsets_stride;
  const auto received = exchange_->dispatch(stream, tokens);
  run_experts(stream, weights, received);
  exchange_->combine(stream,
                     kernels::matrix<const cuda::BFloat16>(work_.expert_out, received.max_rows,
                                                           model_.hidden_size),
                     kernels::matrix<const float>(work_.expert_weights, t, top_k), hidden(t));
}

}  // namespace millrace
