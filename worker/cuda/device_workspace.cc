#include "worker/cuda/device_workspace.h"

#include <algorithm>

#include "kernels/cuda/gemm_plan.h"
#include "worker/cuda/device_state.h"

namespace millrace {

namespace {

using kernels::cuda::BFloat16;
using kernels::cuda::GemmWorkspaceSize;
using kernels::cuda::WeightFormat;

// Every GEMM of the stage shares one workspace.
class GemmSizes {
 public:
  explicit GemmSizes(const DeviceShape& shape) : shape_(shape) {
    const ModelConfig& m = *shape.model;
    const std::int64_t d = m.hidden_size;
    const WeightFormat f = shape.weights.linears;
    const std::int64_t t = shape.max_rows();
    add(f, t, 3 * d, d);
    add(f, t, m.q_width() + 2 * m.kv_width(), d);
    add(f, t, d, m.q_width());
    add(f, t, d, d);
    if (shape.dense_layers() > 0) {
      add(f, t, std::int64_t{2} * m.intermediate_size, d);
      add(f, t, d, m.intermediate_size);
    }
    if (shape.moe_layers() > 0) {
      add(WeightFormat::kBf16, t, m.num_experts, d);
      const std::int64_t groups = shape.expert_slots();
      add(f, shape.expert_rows(), std::int64_t{2} * m.moe_intermediate_size, d, groups);
      add(f, shape.expert_rows(), d, m.moe_intermediate_size, groups);
    }
    if (shape.shard.last_stage) add(WeightFormat::kBf16, shape.logit_rows(), m.vocab_size, d);
  }

  GemmWorkspaceSize most() const { return most_; }

 private:
  void add(WeightFormat format, std::int64_t tokens, std::int64_t rows, std::int64_t cols,
           std::int64_t groups = 1) {
    if (tokens == 0 || groups == 0) return;
    most_ = kernels::cuda::max_workspace(
        most_,
        kernels::cuda::plan_workspace({format, tokens, groups, rows, cols}, shape_.sm_count));
  }

  const DeviceShape& shape_;
  GemmWorkspaceSize most_;
};

void lay_out_experts(ArenaCursor& cursor, const DeviceShape& shape, DeviceWorkspace& w) {
  const ModelConfig& m = *shape.model;
  const std::int64_t t = shape.max_rows();
  w.router = cursor.take<float>(t * m.num_experts);
  w.expert_ids = cursor.take<std::int32_t>(t * m.num_experts_per_tok);
  w.expert_weights = cursor.take<float>(t * m.num_experts_per_tok);
  w.expert_out = cursor.take<BFloat16>(shape.expert_rows() * m.hidden_size);
  w.moe_layers = shape.moe_layers();
  w.offsets_stride = (shape.expert_slots() + 4) / 4 * 4;
  w.expert_offsets = cursor.take<std::int32_t>(w.moe_layers * w.offsets_stride);
}

void lay_out_head(ArenaCursor& cursor, const DeviceShape& shape, DeviceWorkspace& w) {
  const ModelConfig& m = *shape.model;
  const std::int64_t rows = shape.logit_rows();
  w.selected = cursor.take<BFloat16>(rows * m.hidden_size);
  w.logits = cursor.take<float>(rows * m.vocab_size);
  w.bias_scratch = cursor.take<float>(rows * kMaxLogitBias);
  w.samples = cursor.take<kernels::cuda::SampleResult>(shape.max_logit_rows());
}

}  // namespace

void lay_out_workspace(ArenaCursor& cursor, const DeviceShape& shape, DeviceWorkspace& w) {
  const ModelConfig& m = *shape.model;
  const std::int64_t t = shape.max_rows();
  const std::int64_t d = m.hidden_size;
  w.hidden = cursor.take<float>(t * d);
  w.normed = cursor.take<BFloat16>(t * d);
  w.bcx = cursor.take<BFloat16>(t * 3 * d);
  w.mixed = cursor.take<BFloat16>(t * std::max(m.hidden_size, m.q_width()));
  w.qkv = cursor.take<BFloat16>(t * (m.q_width() + 2 * m.kv_width()));
  w.cos = cursor.take<float>(t * m.head_dim / 2);
  w.sin = cursor.take<float>(t * m.head_dim / 2);
  w.inverse_frequencies = cursor.take<float>(m.head_dim / 2);
  const bool moe = shape.moe_layers() > 0;
  const std::int64_t dense_values = shape.dense_layers() > 0 ? t * m.intermediate_size : 0;
  const std::int64_t moe_values = moe ? shape.expert_rows() * m.moe_intermediate_size : 0;
  w.ffn = cursor.take<BFloat16>(std::max(dense_values, moe_values));
  if (moe) lay_out_experts(cursor, shape, w);
  if (shape.shard.last_stage) lay_out_head(cursor, shape, w);

  w.attention.shape = shape.attention();
  w.attention.max_rows = static_cast<std::int32_t>(t);
  w.attention.data = cursor.take<std::byte>(
      static_cast<std::int64_t>(kernels::cuda::attention_workspace_bytes(w.attention)));
  const GemmWorkspaceSize gemm = GemmSizes(shape).most();
  w.gemm.partials = cursor.take<float>(gemm.partial_bytes / 4);
  w.gemm.partial_bytes = gemm.partial_bytes;
  w.gemm.tickets = cursor.take<std::uint32_t>(gemm.ticket_count);
  w.gemm.ticket_count = gemm.ticket_count;
}

}  // namespace millrace
