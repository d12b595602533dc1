// The memory a worker reserves beside weights, KV cache and conv state: known before anything is
// loaded, because the plan is printed first, and computed by what allocates it.
#pragma once

#include <cstdint>

#include "config/model_config.h"
#include "parallel/expert_parallel.h"

namespace millrace {

// Logits are computed for so many rows at a time: a weight panel is then read once for all of them,
// and the buffer stays small beside the weights (32 x 65,536 floats are 8 MiB).
inline constexpr std::int64_t kLogitRows = 32;

struct WorkspaceLimits {
  int stages = 1;
  int lanes = 1;
  bool last_stage = true;  // samples
  std::int32_t max_step_tokens = 0;
  std::int32_t max_sequences = 0;
  bool all_gather = false;
  bool packed = false;  // some weights are packed
};

// Capacities of the expert exchange; MoE models only.
parallel::ExchangeShape exchange_shape(const ModelConfig& model, const WorkspaceLimits& limits);

// Rows of activations in 8 bits, for packed weights: as many as a step has, up to a size beyond
// which more at a time gains nothing.
std::uint64_t quantized_bytes(const ModelConfig& model, const WorkspaceLimits& limits);

// Activations, exchange buffers, quantised activations, pipeline ring and sampler. Pages that are
// never touched (a worst case of the routing that does not occur) do not become resident.
std::uint64_t workspace_bytes(const ModelConfig& model, const WorkspaceLimits& limits);

}  // namespace millrace
