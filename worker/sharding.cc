#include "worker/sharding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "config/check.h"

namespace millrace {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Sums of costs over layer ranges, with what the first and last stage carry besides.
class CutTable {
 public:
  CutTable(const StageCosts& costs, int stages)
      : layers_(static_cast<int>(costs.layers.size())),
        stages_(stages),
        embedding_(costs.embedding),
        head_(costs.head),
        prefix_(costs.layers.size() + 1) {
    for (int i = 0; i < layers_; ++i) prefix_[i + 1] = prefix_[i] + costs.layers[i];
  }

  double stage_cost(int stage, int begin, int end) const {
    double cost = prefix_[end] - prefix_[begin];
    if (stage == 0) cost += embedding_;
    if (stage == stages_ - 1) cost += head_;
    return cost;
  }

  // Least maximum over all cuts.
  double least_maximum() const {
    const auto combine = [](double before, double stage) { return std::max(before, stage); };
    return best(kInfinity, combine, nullptr);
  }

  // The cut with the least sum of squares of which no stage costs more than `bound`.
  std::vector<StageRange> most_even(double bound) const {
    const auto combine = [](double before, double stage) { return before + stage * stage; };
    std::vector<std::vector<int>> from;
    best(bound, combine, &from);
    std::vector<StageRange> ranges(stages_);
    int end = layers_;
    for (int stage = stages_ - 1; stage >= 0; --stage) {
      const int begin = from[stage][end];
      ranges[stage] = {begin, end};
      end = begin;
    }
    return ranges;
  }

 private:
  // value[s][end]: best combined value of stages 0..s over layers [0, end), each stage at least one
  // layer and at most `bound`. Strict improvement only, so that of equal cuts the one with the
  // earlier begin stays.
  template <class Combine>
  double best(double bound, Combine combine, std::vector<std::vector<int>>* from) const {
    std::vector<double> value(layers_ + 1, kInfinity);
    value[0] = 0;
    if (from != nullptr) from->assign(stages_, std::vector<int>(layers_ + 1, 0));
    for (int stage = 0; stage < stages_; ++stage) {
      std::vector<double> next(layers_ + 1, kInfinity);
      for (int end = stage + 1; end <= layers_; ++end) {
        for (int begin = stage; begin < end; ++begin) {
          const double cost = stage_cost(stage, begin, end);
          if (cost > bound || value[begin] == kInfinity) continue;
          const double candidate = combine(value[begin], cost);
          if (candidate >= next[end]) continue;
          next[end] = candidate;
          if (from != nullptr) (*from)[stage][end] = begin;
        }
      }
      value = std::move(next);
    }
    return value[layers_];
  }

  int layers_;
  int stages_;
  double embedding_;
  double head_;
  std::vector<double> prefix_;
};

// So large that no square overflows, and far above any cost in bytes or seconds.
constexpr double kMaxCost = 1e100;

}  // namespace

Result<std::vector<StageRange>> cut_stages(const StageCosts& costs, int stages) {
  const auto layers = static_cast<int>(costs.layers.size());
  if (stages < 1 || stages > layers) {
    return invalid("grid.stages",
                   fmt::format("expected 1 to {} (the model's layers), found {}", layers, stages));
  }
  const auto usable = [](double cost) { return cost >= 0 && cost <= kMaxCost; };
  const bool all_usable = std::all_of(costs.layers.begin(), costs.layers.end(), usable) &&
                          usable(costs.embedding) && usable(costs.head);
  if (!all_usable) return invalid("costs", "expected finite costs that are not negative");
  const CutTable table(costs, stages);
  return table.most_even(table.least_maximum());
}

Result<std::vector<std::vector<std::int32_t>>> split_experts(std::int32_t experts, int lanes,
                                                             std::span<const std::int32_t> counts) {
  if (lanes < 1) return invalid("grid.lanes", fmt::format("expected at least 1, found {}", lanes));
  if (!counts.empty()) {
    const bool negative =
        std::any_of(counts.begin(), counts.end(), [](std::int32_t n) { return n < 0; });
    const auto sum = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    if (counts.size() != static_cast<std::size_t>(lanes) || negative || sum != experts) {
      return invalid("grid.expert_counts",
                     fmt::format("expected {} counts that add up to {} experts, found [{}]", lanes,
                                 experts, fmt::join(counts, ", ")));
    }
  }
  std::vector<std::vector<std::int32_t>> out(static_cast<std::size_t>(lanes));
  std::int32_t next = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const std::int32_t count =
        counts.empty() ? experts / lanes + (lane < experts % lanes ? 1 : 0) : counts[lane];
    for (std::int32_t i = 0; i < count; ++i) out[lane].push_back(next++);
  }
  return out;
}

RankShard make_shard(const ModelConfig& config, std::span<const StageRange> stages, int stage,
                     std::span<const std::int32_t> owned) {
  CHECK(stage >= 0 && stage < static_cast<int>(stages.size()), "stage {} of {}", stage,
        stages.size());
  RankShard shard;
  shard.layer_begin = stages[stage].begin;
  shard.layer_end = stages[stage].end;
  shard.first_stage = stage == 0;
  shard.last_stage = stage == static_cast<int>(stages.size()) - 1;
  for (std::int32_t layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
    auto& experts = shard.experts.emplace_back();
    if (config.is_moe_layer(layer)) experts.assign(owned.begin(), owned.end());
  }
  return shard;
}

RankShard whole_model(const ModelConfig& config) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(config.num_experts));
  std::iota(all.begin(), all.end(), 0);
  const StageRange range{0, config.num_layers()};
  return make_shard(config, {&range, 1}, 0, all);
}

}  // namespace millrace
