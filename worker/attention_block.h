// Grouped-query attention of LFM2 (Transformers' Lfm2Attention): per-head norm of q and k before
// RoPE, keys and values in pages, causal softmax, out_proj.
#pragma once

#include "kernels/kv_write.h"
#include "worker/step_context.h"
#include "worker/weights.h"

namespace millrace {

// hidden += block(normed). Writes the step's keys and values into `pages`, then reads each
// sequence's.
void attention_block(const StepContext& step, const AttentionWeights& weights,
                     const kernels::KvPages& pages);

}  // namespace millrace
