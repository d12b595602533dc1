// Which part of the model each rank holds: stages by layer cost, experts by lane.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/model_config.h"
#include "config/result.h"
#include "worker/weights.h"

namespace millrace {

// Layers [begin, end) of one pipeline stage.
struct StageRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;

  std::int32_t size() const { return end - begin; }
  bool operator==(const StageRange&) const = default;
};

// Cost of each layer in any one unit: weight bytes (weight_costs in worker/memory_plan.h) or
// measured time. The embedding falls to the first stage, the head to the last, also when they are
// tied: both stages then hold the matrix.
struct StageCosts {
  std::vector<double> layers;
  double embedding = 0;
  double head = 0;
};

// The cut with the least maximum stage cost; among those, the one with the least sum of squares,
// then the one whose early stages are shorter. Every stage gets at least one layer. Errors name
// "grid.stages" (not positive, or more stages than layers) or "costs" (negative or not finite).
Result<std::vector<StageRange>> cut_stages(const StageCosts& costs, int stages);

// Experts in id order cut into runs, one per lane. Default: lengths differ by at most one, longer
// ones first, as parallel/expert_placement.h's contiguous; a lane may own none. With `counts`, one
// length per lane, which must add up to `experts` (error names "grid.expert_counts").
Result<std::vector<std::vector<std::int32_t>>> split_experts(
    std::int32_t experts, int lanes, std::span<const std::int32_t> counts = {});

// The shard of one stage's lane that owns `owned` in every MoE layer. `stages` as from cut_stages.
RankShard make_shard(const ModelConfig& config, std::span<const StageRange> stages, int stage,
                     std::span<const std::int32_t> owned);

// Everything on one rank.
RankShard whole_model(const ModelConfig& config);

}  // namespace millrace
