#include "worker/dense_ffn.h"

namespace millrace {

void dense_ffn(const StepContext& step, const FfnWeights& weights) {
  const std::int64_t t = step.tokens();
  const std::int64_t width = step.model.intermediate_size;
  const auto gate = kernels::matrix(step.act.gate.view().data, t, width);
  const auto up = kernels::matrix(step.act.up.view().data, t, width);
  const std::int64_t offsets[] = {0, t};
  kernels::GroupedGemmArgs gemm;
  gemm.x = step.normed();
  gemm.offsets = offsets;
  gemm.weights = {&weights.w1, 1};
  gemm.y = gate;
  step.ops.gate_up(step.run, {.gate = gemm, .up = {&weights.w3, 1}, .work = up});
  step.ops.gemm(step.run, gate, weights.w2, kernels::Accumulate::kAdd, step.hidden());
}

}  // namespace millrace
