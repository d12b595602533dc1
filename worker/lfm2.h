// LFM2 and LFM2-MoE: the order of layers of one pipeline stage, and nothing else.
// Follows Transformers' Lfm2MoeModel; the norm called embedding_norm there is the final norm.
#pragma once

#include <vector>

#include "parallel/expert_placement.h"
#include "worker/conv_state.h"
#include "worker/kv_cache.h"
#include "worker/moe_block.h"
#include "worker/step_context.h"
#include "worker/weights.h"

namespace millrace {

// What a stage keeps between steps, beside its weights.
struct StageState {
  KvCache& kv;
  ConvState& conv;
  std::span<const MoeLayer> moe;  // the stage's MoE layers in order
  std::span<const float> inverse_frequencies;
};

// step.hidden() [T, D]: rows of the embedding table.
void lfm2_embed(const StepContext& step, const kernels::WeightView& embed_tokens);

// Runs the stage's layers on step.hidden() in place. `placement` is indexed by MoE layer of the
// whole model. Collective over the lanes of the stage.
void lfm2_layers(const StepContext& step, const ModelWeights& weights, const StageState& state,
                 const MoeExchange* exchange, const parallel::ExpertPlacement& placement);

// Logits of `rows` (at most the rows of act.logits): final norm, then lm_head. [rows, V].
kernels::MatrixView<const float> lfm2_logits(const StepContext& step, const ModelWeights& weights,
                                             std::span<const LogitRow> rows);

}  // namespace millrace
