#include "worker/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "worker/checkpoint/expected_tensors.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;

constexpr std::uint64_t kF32Bytes = 4;

std::uint64_t matrix_bytes(DType dtype, std::int64_t rows, std::int64_t cols) {
  return static_cast<std::uint64_t>(rows * kernels::row_bytes(dtype, cols));
}

// Values that are f32 whatever the matrices are: norms, taps, router and bias.
std::int64_t small_values(const ModelConfig& c, std::int32_t layer) {
  const std::int64_t d = c.hidden_size;
  std::int64_t values = 2 * d;
  values += c.layers[layer] == LayerKind::kShortConv ? d * c.conv_l_cache : 2 * c.head_dim;
  if (c.is_moe_layer(layer)) {
    values += c.num_experts * d + (c.use_expert_bias ? c.num_experts : 0);
  }
  return values;
}

WeightFootprint::Layer assume_layer(const ModelConfig& c, std::int32_t layer, DType dtype) {
  const std::int64_t d = c.hidden_size;
  WeightFootprint::Layer out;
  const auto add = [&](std::int64_t rows, std::int64_t cols) {
    out.fixed_bytes += matrix_bytes(dtype, rows, cols);
  };
  if (c.layers[layer] == LayerKind::kShortConv) {
    add(4 * d, d);
  } else {
    add(c.q_width() + 2 * c.kv_width(), d);
    add(d, c.q_width());
  }
  if (c.is_moe_layer(layer)) {
    const std::uint64_t expert = matrix_bytes(dtype, 2 * c.moe_intermediate_size, d) +
                                 matrix_bytes(dtype, d, c.moe_intermediate_size);
    out.expert_bytes.assign(static_cast<std::size_t>(c.num_experts), expert);
  } else {
    add(2 * c.intermediate_size, d);
    add(d, c.intermediate_size);
  }
  out.fixed_bytes += static_cast<std::uint64_t>(small_values(c, layer)) * kF32Bytes;
  return out;
}

bool is_expert(const std::string& name) {
  return name.find(".feed_forward.experts.") != std::string::npos;
}

// Adds up matrices as they will be loaded.
class LoadedBytes {
 public:
  LoadedBytes(CpuWeights mode, bool& any_packed) : mode_(mode), any_packed_(any_packed) {}

  void add(const WeightView& stored, WeightUse use, std::uint64_t& total, std::uint64_t& packed) {
    const DType dtype = loaded_dtype(stored, use, mode_);
    const std::uint64_t bytes = matrix_bytes(dtype, stored.rows, stored.cols);
    total += bytes;
    if (dtype != stored.dtype) packed += bytes;
    any_packed_ |= kernels::is_packed(dtype);
  }

 private:
  CpuWeights mode_;
  bool& any_packed_;
};

Result<WeightFootprint::Layer> measure_experts(const TensorSource& source, const ModelConfig& c,
                                               std::int32_t layer, LoadedBytes& bytes) {
  WeightFootprint::Layer out;
  if (!c.is_moe_layer(layer)) return out;
  for (std::int32_t e = 0; e < c.num_experts; ++e) {
    auto expert = expert_weights(source, layer, e);
    if (!expert) return expert.error();
    auto& total = out.expert_bytes.emplace_back();
    auto& packed = out.packed_expert_bytes.emplace_back();
    for (const WeightView& view : {expert->w1, expert->w3, expert->w2}) {
      bytes.add(view, WeightUse::kProjection, total, packed);
    }
  }
  return out;
}

// What a matrix that is not an expert's is used for; nothing for vectors and taps.
std::optional<WeightUse> use_of(const ExpectedTensor& tensor) {
  if (tensor.role == TensorRole::kMatrix) return WeightUse::kProjection;
  if (tensor.role == TensorRole::kRouter) return WeightUse::kRouter;
  return std::nullopt;
}

}  // namespace

std::uint64_t WeightFootprint::Layer::total_bytes() const {
  return std::accumulate(expert_bytes.begin(), expert_bytes.end(), fixed_bytes);
}

std::uint64_t WeightFootprint::Layer::packed_bytes() const {
  return std::accumulate(packed_expert_bytes.begin(), packed_expert_bytes.end(),
                         packed_fixed_bytes);
}

Result<WeightFootprint> measure_weights(const TensorSource& source, const ModelConfig& c,
                                        CpuWeights mode) {
  if (auto checked = validate_tensors(source, c); !checked) return checked.error();
  WeightFootprint out;
  LoadedBytes bytes(mode, out.any_packed);
  out.tied = c.tie_embeddings;
  for (std::int32_t layer = 0; layer < c.num_layers(); ++layer) {
    auto measured = measure_experts(source, c, layer, bytes);
    if (!measured) return measured.error();
    out.layers.push_back(std::move(*measured));
  }
  for (const ExpectedTensor& expected : expected_tensors(c, source)) {
    const TensorEntry& entry = *source.find(expected.name);
    const bool embedding = expected.name == "model.embed_tokens.weight";
    if (embedding) out.embedding_bytes = entry.bytes;
    if (expected.name == "lm_head.weight" || (embedding && out.tied)) {
      bytes.add(entry.view(), WeightUse::kHead, out.head_bytes, out.packed_head_bytes);
    } else if (expected.name == "model.embedding_norm.weight") {
      out.final_norm_bytes = entry.bytes;
    } else if (!embedding && !is_expert(expected.name)) {
      constexpr std::size_t kPrefix = sizeof("model.layers.") - 1;
      auto& layer = out.layers[std::stoul(expected.name.substr(kPrefix))];
      if (const auto use = use_of(expected)) {
        bytes.add(entry.view(), *use, layer.fixed_bytes, layer.packed_fixed_bytes);
      } else {
        layer.fixed_bytes += entry.bytes;
      }
    }
  }
  return out;
}

Result<WeightFootprint> assume_weights(const ModelConfig& c, DType matrices, DType embedding) {
  for (const std::int64_t cols : {c.hidden_size, c.q_width(), c.intermediate_size,
                                  c.num_experts > 0 ? c.moe_intermediate_size : c.hidden_size}) {
    if (!kernels::row_fits(matrices, cols)) {
      return invalid("dtype", fmt::format("rows of {} values do not divide into blocks of {}", cols,
                                          kernels::dtype_name(matrices)));
    }
  }
  if (!kernels::row_fits(embedding, c.hidden_size)) {
    return invalid("dtype", fmt::format("rows of {} values do not divide into blocks of {}",
                                        c.hidden_size, kernels::dtype_name(embedding)));
  }
  WeightFootprint out;
  out.tied = c.tie_embeddings;
  for (std::int32_t layer = 0; layer < c.num_layers(); ++layer) {
    out.layers.push_back(assume_layer(c, layer, matrices));
  }
  out.embedding_bytes = matrix_bytes(embedding, c.vocab_size, c.hidden_size);
  out.head_bytes = out.embedding_bytes;
  out.final_norm_bytes = static_cast<std::uint64_t>(c.hidden_size) * kF32Bytes;
  return out;
}

StageCosts weight_costs(const WeightFootprint& footprint) {
  StageCosts costs;
  for (const auto& layer : footprint.layers) {
    costs.layers.push_back(static_cast<double>(layer.total_bytes()));
  }
  costs.embedding = static_cast<double>(footprint.embedding_bytes);
  costs.head = static_cast<double>(footprint.head_bytes + footprint.final_norm_bytes);
  return costs;
}

namespace {

std::optional<Error> check_limits(const PlanLimits& limits) {
  const auto positive = [](const char* field, std::int64_t value) -> std::optional<Error> {
    if (value > 0) return std::nullopt;
    return invalid(field, fmt::format("expected at least 1, found {}", value));
  };
  if (auto error = positive("cache.block_tokens", limits.block_tokens)) return error;
  if (auto error = positive("cache.max_sequences", limits.max_sequences)) return error;
  if (auto error = positive("scheduler.max_step_tokens", limits.max_step_tokens)) return error;
  if (limits.kv_dtype != DType::kBF16 && limits.kv_dtype != DType::kF32) {
    return invalid("cache.kv_dtype", "expected bf16 or f32");
  }
  if (limits.kv_tokens < 0 || (limits.kv_tokens == 0 && limits.cache_bytes == 0)) {
    return invalid("cache.kv_tokens", "expected cache.kv_tokens or cache.memory_bytes above 0");
  }
  return std::nullopt;
}

// The weights of one rank.
RankMemory weigh_rank(const ModelConfig& c, const WeightFootprint& footprint,
                      std::span<const StageRange> ranges, int stage, int lane,
                      std::span<const std::vector<std::int32_t>> experts) {
  RankMemory out;
  const bool last = stage + 1 == static_cast<int>(ranges.size());
  out.stage = stage;
  out.lane = lane;
  out.layers = ranges[stage];
  // A rank that is first and last at once holds a tied matrix once.
  if (stage == 0 && !(last && footprint.tied)) out.weight_bytes += footprint.embedding_bytes;
  if (last) {
    out.weight_bytes += footprint.final_norm_bytes + footprint.head_bytes;
    out.packed_bytes += footprint.packed_head_bytes;
  }
  for (std::int32_t layer = out.layers.begin; layer < out.layers.end; ++layer) {
    const auto& weights = footprint.layers[layer];
    out.weight_bytes += weights.fixed_bytes;
    out.packed_bytes += weights.packed_fixed_bytes;
    const bool conv = c.layers[layer] == LayerKind::kShortConv;
    ++(conv ? out.conv_layers : out.attention_layers);
    if (!c.is_moe_layer(layer)) continue;
    for (const std::int32_t expert : experts[lane]) {
      out.weight_bytes += weights.expert_bytes[expert];
      if (!weights.packed_expert_bytes.empty()) {
        out.packed_bytes += weights.packed_expert_bytes[expert];
      }
    }
    out.experts = static_cast<std::int32_t>(experts[lane].size());
  }
  return out;
}

RankMemory plan_rank(const ModelConfig& c, const WeightFootprint& footprint,
                     std::span<const StageRange> ranges, int stage, int lane,
                     std::span<const std::vector<std::int32_t>> experts, const PlanLimits& limits) {
  RankMemory out = weigh_rank(c, footprint, ranges, stage, lane, experts);
  const std::uint64_t element = limits.kv_dtype == DType::kF32 ? 4 : 2;
  out.kv_bytes_per_block = element * 2 * static_cast<std::uint64_t>(c.kv_width()) *
                           static_cast<std::uint64_t>(limits.block_tokens) *
                           static_cast<std::uint64_t>(out.attention_layers);
  out.conv_bytes_per_slot = kF32Bytes * static_cast<std::uint64_t>(c.conv_l_cache - 1) *
                            static_cast<std::uint64_t>(c.hidden_size) *
                            static_cast<std::uint64_t>(out.conv_layers);
  out.conv_bytes = out.conv_bytes_per_slot * (static_cast<std::uint64_t>(limits.max_sequences) +
                                              static_cast<std::uint64_t>(limits.snapshots));
  out.workspace_bytes = workspace_bytes(c, {.stages = static_cast<int>(ranges.size()),
                                            .lanes = static_cast<int>(experts.size()),
                                            .last_stage = stage + 1 == std::ssize(ranges),
                                            .max_step_tokens = limits.max_step_tokens,
                                            .max_sequences = limits.max_sequences,
                                            .all_gather = limits.all_gather,
                                            .packed = footprint.any_packed});
  return out;
}

// Blocks that fit beside the conv slots on every rank; nothing when no rank has attention.
Result<std::int64_t> blocks_that_fit(const std::vector<RankMemory>& ranks,
                                     const PlanLimits& limits) {
  std::uint64_t blocks = UINT64_MAX;
  for (const RankMemory& rank : ranks) {
    if (limits.cache_bytes < rank.conv_bytes) {
      return Error{
          ErrorCode::kResourceExhausted, "cache.memory_bytes",
          fmt::format("{} bytes are fewer than the {} of {} conv slots and {} snapshots on stage "
                      "{}; raise it or lower cache.max_sequences or cache.state_snapshots",
                      limits.cache_bytes, rank.conv_bytes, limits.max_sequences, limits.snapshots,
                      rank.stage)};
    }
    if (rank.kv_bytes_per_block == 0) continue;
    blocks = std::min(blocks, (limits.cache_bytes - rank.conv_bytes) / rank.kv_bytes_per_block);
  }
  // Block ids are 32 bits wide.
  return static_cast<std::int64_t>(std::min<std::uint64_t>(blocks, INT32_MAX));
}

}  // namespace

Result<MemoryPlan> plan_memory(const ModelConfig& config, const WeightFootprint& footprint,
                               std::span<const StageRange> ranges,
                               std::span<const std::vector<std::int32_t>> experts,
                               const PlanLimits& limits) {
  if (auto error = check_limits(limits)) return *error;
  CHECK(!ranges.empty() && !experts.empty() && ranges.back().end == config.num_layers(),
        "{} stages, {} lanes", ranges.size(), experts.size());
  MemoryPlan plan;
  plan.stages = static_cast<int>(ranges.size());
  plan.lanes = static_cast<int>(experts.size());
  for (int stage = 0; stage < plan.stages; ++stage) {
    for (int lane = 0; lane < plan.lanes; ++lane) {
      plan.ranks.push_back(plan_rank(config, footprint, ranges, stage, lane, experts, limits));
    }
  }
  if (limits.kv_tokens > 0) {
    plan.kv_blocks = limits.kv_tokens / limits.block_tokens;
  } else {
    auto blocks = blocks_that_fit(plan.ranks, limits);
    if (!blocks) return blocks.error();
    plan.kv_blocks = *blocks;
  }
  if (plan.kv_blocks < limits.max_sequences) {
    const bool tokens = limits.kv_tokens > 0;
    return Error{ErrorCode::kResourceExhausted, tokens ? "cache.kv_tokens" : "cache.memory_bytes",
                 fmt::format("gives {} KV blocks of {} tokens, fewer than one for each of the {} "
                             "sequences; raise it or lower cache.max_sequences",
                             plan.kv_blocks, limits.block_tokens, limits.max_sequences)};
  }
  plan.kv_tokens = plan.kv_blocks * limits.block_tokens;
  for (RankMemory& rank : plan.ranks) {
    rank.kv_bytes = rank.kv_bytes_per_block * static_cast<std::uint64_t>(plan.kv_blocks);
  }
  return plan;
}

ResidentWeights resident_weights(const ModelConfig& config, const WeightFootprint& footprint,
                                 std::span<const StageRange> ranges,
                                 std::span<const std::vector<std::int32_t>> experts) {
  ResidentWeights out;
  for (int stage = 0; stage < std::ssize(ranges); ++stage) {
    for (int lane = 0; lane < std::ssize(experts); ++lane) {
      out.packed_bytes += weigh_rank(config, footprint, ranges, stage, lane, experts).packed_bytes;
    }
  }
  for (const auto& layer : footprint.layers) {
    out.mapped_bytes += layer.total_bytes() - layer.packed_bytes();
  }
  out.mapped_bytes += footprint.final_norm_bytes + footprint.head_bytes;
  out.mapped_bytes -= footprint.packed_head_bytes;
  // Tied, it is the head's matrix, unless that is packed on another rank.
  const bool packed_elsewhere = footprint.packed_head_bytes > 0 && ranges.size() > 1;
  if (!footprint.tied || packed_elsewhere) out.mapped_bytes += footprint.embedding_bytes;
  return out;
}

std::string format_plan(const MemoryPlan& plan) {
  const auto gib = [](std::uint64_t bytes) {
    return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0);
  };
  std::string out = fmt::format("{} stages x {} lanes, {} KV tokens per lane ({} blocks)\n",
                                plan.stages, plan.lanes, plan.kv_tokens, plan.kv_blocks);
  out += fmt::format("{:>5} {:>4} {:>9} {:>5} {:>5} {:>7} {:>11} {:>10} {:>9} {:>9} {:>9} {:>10}\n",
                     "stage", "lane", "layers", "attn", "conv", "experts", "weights GiB",
                     "packed GiB", "KV GiB", "conv GiB", "work GiB", "total GiB");
  for (const RankMemory& r : plan.ranks) {
    out += fmt::format(
        "{:>5} {:>4} {:>9} {:>5} {:>5} {:>7} {:>11.2f} {:>10.2f} {:>9.2f} {:>9.2f} {:>9.2f} "
        "{:>10.2f}\n",
        r.stage, r.lane, fmt::format("{}-{}", r.layers.begin, r.layers.end - 1), r.attention_layers,
        r.conv_layers, r.experts, gib(r.weight_bytes), gib(r.packed_bytes), gib(r.kv_bytes),
        gib(r.conv_bytes), gib(r.workspace_bytes), gib(r.total_bytes()));
  }
  return out;
}

}  // namespace millrace
