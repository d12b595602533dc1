#include "worker/workspace.h"

#include <algorithm>

#include "kernels/packed_gemm.h"
#include "worker/activations.h"
#include "worker/sampler.h"

namespace millrace {

parallel::ExchangeShape exchange_shape(const ModelConfig& model, const WorkspaceLimits& limits) {
  parallel::ExchangeShape shape;
  shape.max_tokens = limits.max_step_tokens;
  shape.hidden = model.hidden_size;
  shape.top_k = model.num_experts_per_tok;
  shape.experts = model.num_experts;
  shape.slots = (model.num_experts + limits.lanes - 1) / limits.lanes;
  shape.lanes = limits.lanes;
  shape.all_gather = limits.all_gather;
  return shape;
}

std::uint64_t quantized_bytes(const ModelConfig& model, const WorkspaceLimits& limits) {
  if (!limits.packed) return 0;
  constexpr std::int64_t kMost = std::int64_t{16} << 20;
  const std::int64_t tokens = limits.max_step_tokens;
  const std::int64_t width =
      std::max({model.hidden_size, model.q_width(), model.intermediate_size});
  const std::int64_t expert_values =
      tokens * model.num_experts_per_tok * std::int64_t{model.moe_intermediate_size};
  const std::int64_t blocks = std::max(tokens * width, expert_values) / kernels::kQuantBlock + 1;
  const auto block = static_cast<std::int64_t>(sizeof(kernels::QuantizedBlock));
  return static_cast<std::uint64_t>(std::min(kMost, blocks * block));
}

std::uint64_t workspace_bytes(const ModelConfig& model, const WorkspaceLimits& limits) {
  const std::int64_t tokens = limits.max_step_tokens;
  std::int64_t expert_rows = 0;
  std::uint64_t bytes = 0;
  if (model.num_experts > 0) {
    const parallel::ExchangeShape shape = exchange_shape(model, limits);
    expert_rows = parallel::ExpertExchange::max_rows(shape);
    bytes += parallel::ExpertExchange::planned_bytes(shape);
  }
  bytes += static_cast<std::uint64_t>(Activations::bytes(model, tokens, expert_rows, kLogitRows));
  bytes += quantized_bytes(model, limits);
  if (limits.stages > 1) {
    // The ring of parallel/pipeline.h and its receive buffer.
    bytes += static_cast<std::uint64_t>((limits.stages + 2) * tokens * model.hidden_size) *
             sizeof(float);
  }
  if (limits.last_stage) {
    bytes +=
        Sampler::memory_bytes(static_cast<std::uint32_t>(limits.max_sequences), model.vocab_size);
  }
  return bytes;
}

}  // namespace millrace
