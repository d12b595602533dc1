// SwiGLU feed-forward network: w2(silu(w1 x) * w3 x).
#pragma once

#include "worker/step_context.h"
#include "worker/weights.h"

namespace millrace {

// hidden += ffn(normed).
void dense_ffn(const StepContext& step, const FfnWeights& weights);

}  // namespace millrace
