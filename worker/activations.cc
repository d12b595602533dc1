#include "worker/activations.h"

#include <algorithm>

namespace millrace {

namespace {

// The widths of all buffers, in one place, so that the plan and the allocation cannot differ.
struct Widths {
  Widths(const ModelConfig& m, std::int64_t max_tokens, std::int64_t expert_rows) {
    const bool dense = m.num_experts == 0 || m.num_dense_layers > 0;
    const std::int64_t dense_values = dense ? max_tokens * m.intermediate_size : 0;
    const std::int64_t moe_values = m.num_experts > 0 ? expert_rows * m.moe_intermediate_size : 0;
    ffn_values = std::max(dense_values, moe_values);
    mixed = std::max<std::int64_t>(m.hidden_size, m.q_width());
    qkv = m.q_width() + 2 * m.kv_width();
  }
  std::int64_t ffn_values, mixed, qkv;
};

}  // namespace

Activations::Activations(const ModelConfig& m, std::int64_t max_tokens, std::int64_t expert_rows,
                         std::int64_t logit_rows) {
  const Widths w(m, max_tokens, expert_rows);
  const std::int64_t d = m.hidden_size;
  const std::int64_t t = max_tokens;
  hidden = {t, d};
  normed = {t, d};
  bcx = {t, 3 * d};
  mixed = {t, w.mixed};
  qkv = {t, w.qkv};
  cos = {t, m.head_dim / 2};
  sin = {t, m.head_dim / 2};
  gate = {1, w.ffn_values};
  up = {1, w.ffn_values};
  if (m.num_experts > 0) {
    router = {t, m.num_experts};
    expert_ids = {t, m.num_experts_per_tok};
    expert_weights = {t, m.num_experts_per_tok};
    expert_out = {expert_rows, d};
  }
  selected = {logit_rows, d};
  logits = {logit_rows, m.vocab_size};
}

std::int64_t Activations::bytes(const ModelConfig& m, std::int64_t max_tokens,
                                std::int64_t expert_rows, std::int64_t logit_rows) {
  const Widths w(m, max_tokens, expert_rows);
  const std::int64_t d = m.hidden_size;
  std::int64_t values =
      max_tokens * (2 * d + 3 * d + w.mixed + w.qkv + m.head_dim) + 2 * w.ffn_values;
  if (m.num_experts > 0) {
    values += max_tokens * (m.num_experts + 2 * m.num_experts_per_tok) + expert_rows * d;
  }
  values += logit_rows * (d + m.vocab_size);
  return values * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace millrace
