#include "worker/lfm2.h"

#include <algorithm>

#include "worker/attention_block.h"
#include "worker/dense_ffn.h"
#include "worker/short_conv_block.h"

namespace millrace {

void lfm2_embed(const StepContext& step, const kernels::WeightView& embed_tokens) {
  step.ops.embedding(step.run, step.batch.ids(), embed_tokens, step.hidden());
}

void lfm2_layers(const StepContext& step, const ModelWeights& weights, const StageState& state,
                 const MoeExchange* exchange, const parallel::ExpertPlacement& placement) {
  const ModelConfig& m = step.model;
  const std::int64_t t = step.tokens();
  if (t > 0) {
    step.ops.rope_angles(step.run, step.batch.positions(), state.inverse_frequencies,
                         step.act.cos.view(t), step.act.sin.view(t));
  }
  std::size_t conv_index = 0;
  std::size_t attention_index = 0;
  std::size_t moe_index = 0;
  for (const LayerWeights& layer : weights.layers) {
    if (step.world != nullptr) step.world->progress();
    const auto norm = [&](std::span<const float> weight) {
      step.ops.rms_norm(step.run, step.hidden(), weight, m.norm_eps, step.normed());
    };
    if (t > 0) {
      norm(layer.operator_norm);
      if (layer.conv) {
        short_conv_block(step, *layer.conv, state.conv.layer(conv_index));
      } else {
        attention_block(step, *layer.attention, state.kv.layer(attention_index));
      }
      norm(layer.ffn_norm);
    }
    ++(layer.conv ? conv_index : attention_index);
    if (layer.moe) {
      moe_block(step, state.moe[moe_index], moe_index, *exchange,
                placement.layer(layer.layer - m.num_dense_layers));
      ++moe_index;
    } else if (t > 0) {
      dense_ffn(step, *layer.dense);
    }
  }
}

kernels::MatrixView<const float> lfm2_logits(const StepContext& step, const ModelWeights& weights,
                                             std::span<const LogitRow> rows) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto selected = step.act.selected.view(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const float* row = step.hidden().row(rows[static_cast<std::size_t>(i)].row);
    std::copy(row, row + step.model.hidden_size, selected.row(i));
  }
  step.ops.rms_norm(step.run, selected, weights.final_norm, step.model.norm_eps, selected);
  const auto logits = step.act.logits.view(n);
  step.ops.gemm(step.run, selected, weights.lm_head, kernels::Accumulate::kStore, logits);
  return logits;
}

}  // namespace millrace
