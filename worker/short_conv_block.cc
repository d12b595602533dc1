#include "worker/short_conv_block.h"

namespace millrace {

void short_conv_block(const StepContext& step, const ConvWeights& weights,
                      kernels::TensorView<float, 3> state) {
  const std::int64_t d = step.model.hidden_size;
  const auto bcx = step.act.bcx.view(step.tokens());
  const auto mixed = step.act.mixed.view(step.tokens()).slice_cols(0, d);
  step.ops.gemm(step.run, step.normed(), weights.in_proj, kernels::Accumulate::kStore, bcx);

  kernels::ShortConvArgs conv;
  conv.bcx = bcx;
  conv.taps = kernels::matrix(weights.taps.data(), d, step.model.conv_l_cache);
  conv.segments = step.batch.segments();
  conv.state = state;
  conv.out = mixed;
  step.ops.short_conv(step.run, conv);

  step.ops.gemm(step.run, mixed, weights.out_proj, kernels::Accumulate::kAdd, step.hidden());
}

}  // namespace millrace
