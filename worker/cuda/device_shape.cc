#include "worker/cuda/device_shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/sampling.h"

namespace millrace {

DecodeBuckets DeviceShape::decode_buckets() const {
  if (lanes == 1) return DecodeBuckets(static_cast<std::int32_t>(limits.max_sequences));
  const std::uint32_t most = std::min(std::bit_ceil(limits.max_sequences), limits.max_tokens);
  return DecodeBuckets(static_cast<std::int32_t>(most));
}

std::int32_t DeviceShape::max_rows() const {
  return std::max(static_cast<std::int32_t>(limits.max_tokens), decode_buckets().largest());
}

std::int32_t DeviceShape::logit_rows() const { return decode_buckets().largest(); }

std::int32_t DeviceShape::blocks_per_sequence() const {
  return static_cast<std::int32_t>((limits.max_context_tokens + limits.block_tokens - 1) /
                                   limits.block_tokens);
}

std::int32_t DeviceShape::expert_slots() const {
  for (const auto& slots : shard.experts) {
    if (!slots.empty()) return static_cast<std::int32_t>(slots.size());
  }
  return 0;
}

std::int64_t DeviceShape::moe_layers() const {
  std::int64_t count = 0;
  for (std::int32_t i = shard.layer_begin; i < shard.layer_end; ++i) {
    count += model->is_moe_layer(i) ? 1 : 0;
  }
  return count;
}

std::int64_t DeviceShape::dense_layers() const {
  return shard.layer_end - shard.layer_begin - moe_layers();
}

std::int64_t DeviceShape::expert_rows() const {
  return parallel::DeviceExpertExchange::max_rows(exchange(), max_rows());
}

parallel::DeviceExchangeShape DeviceShape::exchange() const {
  parallel::DeviceExchangeShape out;
  out.max_tokens = max_rows();
  out.hidden = model->hidden_size;
  out.top_k = model->num_experts_per_tok;
  out.experts = model->num_experts;
  out.slots = expert_slots();
  out.lanes = lanes;
  // Only a configuration that always takes the fixed path takes it for prompts.
  const bool decodes_only = exact_exchange || all_gather;
  out.fixed_bucket = decodes_only ? decode_buckets().largest() : max_rows();
  out.exact = exact_exchange;
  out.all_gather = all_gather;
  return out;
}

kernels::cuda::AttentionShape DeviceShape::attention() const {
  return {model->num_heads, model->num_kv_heads, model->head_dim};
}

namespace {

Error unsupported(const char* field, std::string message) {
  return {ErrorCode::kUnsupported, field, std::move(message)};
}

Result<void> check_experts(const ModelConfig& m) {
  if (m.num_experts == 0) return {};
  if (m.num_experts > kernels::cuda::kMaxGroupedExperts ||
      m.num_experts_per_tok > kernels::cuda::kMaxRouterTopK) {
    return unsupported(
        "model.num_experts",
        fmt::format("devices run up to {} experts with up to {} a token, the model has {} and {}; "
                    "set device.backend to cpu",
                    kernels::cuda::kMaxGroupedExperts, kernels::cuda::kMaxRouterTopK, m.num_experts,
                    m.num_experts_per_tok));
  }
  if (m.moe_intermediate_size % 32 != 0) {
    return unsupported("model.moe_intermediate_size",
                       fmt::format("{} is not a multiple of 32; set device.backend to cpu",
                                   m.moe_intermediate_size));
  }
  return {};
}

}  // namespace

Result<void> check_device_model(const ModelConfig& m, std::int64_t block_tokens) {
  const kernels::cuda::AttentionShape heads{m.num_heads, m.num_kv_heads, m.head_dim};
  if (!kernels::cuda::attention_supports(heads)) {
    return unsupported("model.head_dim",
                       fmt::format("devices run head_dim 32, 64 or 128 with 1, 2, 4 or 8 query "
                                   "heads for each KV head, the model has {} and {} / {}; set "
                                   "device.backend to cpu",
                                   m.head_dim, m.num_heads, m.num_kv_heads));
  }
  for (const auto& [field, width] : {std::pair("model.hidden_size", m.hidden_size),
                                     std::pair("model.intermediate_size", m.intermediate_size)}) {
    const bool used = m.num_experts == 0 || m.num_dense_layers > 0 || width == m.hidden_size;
    if (used && width % 32 != 0) {
      return unsupported(
          field, fmt::format("{} is not a multiple of 32; set device.backend to cpu", width));
    }
  }
  if (m.vocab_size > kernels::cuda::kMaxSampledVocab || m.vocab_size % 4 != 0) {
    return unsupported("model.vocab_size",
                       fmt::format("{} is not a multiple of 4 up to {}; set device.backend to cpu",
                                   m.vocab_size, kernels::cuda::kMaxSampledVocab));
  }
  if (block_tokens % 16 != 0) return invalid("cache.block_tokens", "must be a multiple of 16");
  return check_experts(m);
}

}  // namespace millrace
