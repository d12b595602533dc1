#include "worker/moe_block.h"

#include "worker/stopwatch.h"

namespace millrace {

namespace {

void route(const StepContext& step, const MoeWeights& weights) {
  const std::int64_t t = step.tokens();
  const auto logits = step.act.router.view(t);
  step.ops.gemm(step.run, step.normed(), weights.router, kernels::Accumulate::kStore, logits);
  kernels::RouterArgs router;
  router.logits = logits;
  router.bias = weights.expert_bias;
  router.normalize = step.model.norm_topk_prob;
  router.scaling_factor = step.model.routed_scaling_factor;
  router.ids = step.act.expert_ids.view(t);
  router.weights = step.act.expert_weights.view(t);
  step.ops.router(step.run, router);
}

// expert_out[R, D] of the rows that the dispatch brought, grouped by local expert.
void run_experts(const StepContext& step, const MoeLayer& layer,
                 const parallel::ExpertExchange::Received& received) {
  const std::int64_t rows = received.rows();
  const std::int64_t f = step.model.moe_intermediate_size;
  const auto gate = kernels::matrix(step.act.gate.view().data, rows, f);
  const auto up = kernels::matrix(step.act.up.view().data, rows, f);

  kernels::GroupedGemmArgs gemm;
  gemm.offsets = received.offsets;
  gemm.x = received.x;
  gemm.x_rows = received.x_rows;
  gemm.weights = layer.w1;
  gemm.y = gate;
  step.ops.gate_up(step.run, {.gate = gemm, .up = layer.w3, .work = up});
  gemm.x = gate;
  gemm.x_rows = {};
  gemm.weights = layer.w2;
  gemm.y = step.act.expert_out.view(rows);
  step.ops.grouped_gemm(step.run, gemm);
}

void count_rows(std::span<const std::int64_t> offsets, std::span<std::uint64_t> rows) {
  for (std::size_t slot = 0; slot < rows.size(); ++slot) {
    rows[slot] += static_cast<std::uint64_t>(offsets[slot + 1] - offsets[slot]);
  }
}

}  // namespace

MoeLayer::MoeLayer(const MoeWeights& moe) : weights(moe) {
  for (const FfnWeights& expert : moe.experts) {
    w1.push_back(expert.w1);
    w3.push_back(expert.w3);
    w2.push_back(expert.w2);
  }
}

void moe_block(const StepContext& step, const MoeLayer& layer, std::size_t index,
               const MoeExchange& moe, std::span<const parallel::ExpertHome> homes) {
  const std::int64_t t = step.tokens();
  if (t > 0) route(step, layer.weights);
  Stopwatch watch;
  const auto received = moe.exchange.dispatch(moe.path, homes, step.normed(),
                                              step.act.expert_ids.view(t), moe.bucket);
  moe.exchange_ns += watch.lap_ns();
  count_rows(received.offsets, moe.expert_rows.subspan(index * layer.w1.size(), layer.w1.size()));
  if (received.rows() > 0) run_experts(step, layer, received);
  watch.lap_ns();
  moe.exchange.combine(step.run, step.act.expert_out.view(received.rows()),
                       step.act.expert_weights.view(t), kernels::Accumulate::kAdd, step.hidden());
  moe.exchange_ns += watch.lap_ns();
}

}  // namespace millrace
