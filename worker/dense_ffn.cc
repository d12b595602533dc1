#include "worker/dense_ffn.h"

namespace millrace {

void dense_ffn(const StepContext& step, const FfnWeights& weights) {
  const std::int64_t t = step.tokens();
  const std::int64_t width = step.model.intermediate_size;
  const auto gate = kernels::matrix(step.act.gate.view().data, t, width);
  const auto up = kernels::matrix(step.act.up.view().data, t, width);
  step.ops.gemm(step.run, step.normed(), weights.w1, kernels::Accumulate::kStore, gate);
  step.ops.gemm(step.run, step.normed(), weights.w3, kernels::Accumulate::kStore, up);
  step.ops.swiglu(step.run, gate, up, gate);
  step.ops.gemm(step.run, gate, weights.w2, kernels::Accumulate::kAdd, step.hidden());
}

}  // namespace millrace
