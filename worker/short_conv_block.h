// The gated short convolution of LFM2 (Transformers' Lfm2ShortConv): in_proj, B * x, depthwise
// causal convolution, C *, out_proj.
#pragma once

#include "worker/step_context.h"
#include "worker/weights.h"

namespace millrace {

// hidden += block(normed). `state` is this layer's [slots, L - 1, D]; it is read and advanced.
void short_conv_block(const StepContext& step, const ConvWeights& weights,
                      kernels::TensorView<float, 3> state);

}  // namespace millrace
