// How much memory each rank of a grid needs, known before anything is loaded.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "config/model_config.h"
#include "config/result.h"
#include "kernels/dtype.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/sharding.h"
#include "worker/workspace.h"

namespace millrace {

// Weight bytes of the model, by what can be put on different ranks. Those that ranks pack into
// memory of their own (worker/packing.h) are counted apart as well.
struct WeightFootprint {
  struct Layer {
    std::uint64_t fixed_bytes = 0;                   // norms, mixer, dense FFN or router and bias
    std::vector<std::uint64_t> expert_bytes;         // [E]; empty for dense layers
    std::uint64_t packed_fixed_bytes = 0;            // of fixed_bytes
    std::vector<std::uint64_t> packed_expert_bytes;  // of each in expert_bytes; empty: none

    std::uint64_t total_bytes() const;
    std::uint64_t packed_bytes() const;
  };
  std::vector<Layer> layers;
  std::uint64_t embedding_bytes = 0;
  std::uint64_t head_bytes = 0;         // the embedding's when tied
  std::uint64_t packed_head_bytes = 0;  // of head_bytes
  std::uint64_t final_norm_bytes = 0;
  bool tied = true;
  bool any_packed = false;  // some matrix is computed with in a packed type
};

// From a checkpoint's header, in the form that `mode` gives the matrices. Fails as
// validate_tensors does.
Result<WeightFootprint> measure_weights(const TensorSource& source, const ModelConfig& config,
                                        CpuWeights mode = CpuWeights::kMapped);

// Without a checkpoint: all matrices in `matrices`, the embedding (and head) in `embedding`, norms,
// taps, router and bias in f32. Fails when a row does not divide into the dtype's blocks.
Result<WeightFootprint> assume_weights(const ModelConfig& config, kernels::DType matrices,
                                       kernels::DType embedding);

// Costs for cut_stages by weight bytes.
StageCosts weight_costs(const WeightFootprint& footprint);

struct PlanLimits {
  std::int32_t block_tokens = 32;
  kernels::DType kv_dtype = kernels::DType::kBF16;  // or kF32
  std::int32_t max_sequences = 32;                  // conv slots of a lane
  std::int32_t snapshots = 0;                       // of conv state, each as large as a slot
  std::int32_t max_step_tokens = 512;               // of a lane, in one step
  bool all_gather = false;                          // reserve for that exchange path as well
  // KV of one lane. With kv_tokens, that many (rounded down to whole blocks); else as many blocks
  // as fit into cache_bytes (per rank, KV blocks and conv slots together) on the tightest stage.
  std::int64_t kv_tokens = 0;
  std::uint64_t cache_bytes = 0;
};

struct RankMemory {
  int stage = 0;
  int lane = 0;
  StageRange layers;
  std::int32_t attention_layers = 0;
  std::int32_t conv_layers = 0;
  std::int32_t experts = 0;               // owned in each MoE layer
  std::uint64_t weight_bytes = 0;         // mapped pages are shared by the ranks of a machine
  std::uint64_t packed_bytes = 0;         // of weight_bytes: in memory of the rank's own
  std::uint64_t kv_bytes_per_block = 0;   // all attention layers of the stage
  std::uint64_t conv_bytes_per_slot = 0;  // f32, all conv layers of the stage; on CPUs only
  std::uint64_t kv_bytes = 0;             // for kv_blocks of the plan
  std::uint64_t conv_bytes = 0;           // for all slots and snapshots
  std::uint64_t workspace_bytes = 0;      // reserved; worker/workspace.h

  std::uint64_t total_bytes() const {
    return weight_bytes + kv_bytes + conv_bytes + workspace_bytes;
  }
};

struct MemoryPlan {
  int stages = 1;
  int lanes = 1;
  std::int64_t kv_blocks = 0;     // of a lane: the same on all its stages
  std::int64_t kv_tokens = 0;     // kv_blocks * block_tokens
  std::vector<RankMemory> ranks;  // stage-major: [stage * lanes + lane]
};

// `ranges` as from cut_stages, `experts` as from split_experts. Errors name the setting to change:
// "cache.memory_bytes" or "cache.kv_tokens" when the conv slots and one KV block per sequence do
// not fit, or a limit that is not positive.
Result<MemoryPlan> plan_memory(const ModelConfig& config, const WeightFootprint& footprint,
                               std::span<const StageRange> ranges,
                               std::span<const std::vector<std::int32_t>> experts,
                               const PlanLimits& limits);

// What the weights of a whole cell take: packed bytes of each rank for itself, mapped bytes once
// for all ranks of a machine.
struct ResidentWeights {
  std::uint64_t mapped_bytes = 0;
  std::uint64_t packed_bytes = 0;
};
ResidentWeights resident_weights(const ModelConfig& config, const WeightFootprint& footprint,
                                 std::span<const StageRange> ranges,
                                 std::span<const std::vector<std::int32_t>> experts);

// A table for people, one line per rank.
std::string format_plan(const MemoryPlan& plan);

}  // namespace millrace
