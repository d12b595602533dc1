#include "worker/attention_block.h"

#include <cmath>

namespace millrace {

void attention_block(const StepContext& step, const AttentionWeights& weights,
                     const kernels::KvPages& pages) {
  const ModelConfig& m = step.model;
  const std::int64_t t = step.tokens();
  const auto qkv = step.act.qkv.view(t);
  const auto q = qkv.slice_cols(0, m.q_width());
  const auto k = qkv.slice_cols(m.q_width(), m.kv_width());
  const auto v = qkv.slice_cols(m.q_width() + m.kv_width(), m.kv_width());
  constexpr auto kStore = kernels::Accumulate::kStore;
  step.ops.gemm(step.run, step.normed(), weights.q_proj, kStore, q);
  step.ops.gemm(step.run, step.normed(), weights.k_proj, kStore, k);
  step.ops.gemm(step.run, step.normed(), weights.v_proj, kStore, v);

  const auto q_heads = kernels::heads(q.data, t, m.num_heads, m.head_dim, q.row_stride);
  const auto k_heads = kernels::heads(k.data, t, m.num_kv_heads, m.head_dim, k.row_stride);
  const auto v_heads = kernels::heads(v.data, t, m.num_kv_heads, m.head_dim, v.row_stride);
  kernels::QkNormRopeArgs rope;
  rope.q = q_heads;
  rope.k = k_heads;
  rope.q_weight = weights.q_norm;
  rope.k_weight = weights.k_norm;
  rope.eps = m.norm_eps;
  rope.cos = step.act.cos.view(t);
  rope.sin = step.act.sin.view(t);
  step.ops.qk_norm_rope(step.run, rope);
  step.ops.kv_write(step.run, k_heads, v_heads, step.batch.kv_slots(), pages);

  const auto mixed = step.act.mixed.view(t).slice_cols(0, m.q_width());
  kernels::AttentionArgs attention;
  attention.q = q_heads;
  attention.pages = pages;
  attention.sequences = step.batch.sequences();
  attention.positions = step.batch.positions();
  attention.block_tables = step.batch.block_tables();
  attention.scale = 1.0F / std::sqrt(static_cast<float>(m.head_dim));
  attention.out = kernels::heads(mixed.data, t, m.num_heads, m.head_dim, mixed.row_stride);
  step.ops.attention(step.run, attention);

  step.ops.gemm(step.run, mixed, weights.out_proj, kernels::Accumulate::kAdd, step.hidden());
}

}  // namespace millrace
