#include "worker/cuda/device_memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/device_expert_exchange.h"
#include "parallel/device_pipeline.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/cuda/device_state.h"
#include "worker/cuda/device_workspace.h"
#include "worker/cuda/sequence_starts.h"
#include "worker/cuda/step_inputs.h"

namespace millrace {

namespace {

BatchLimits limits_of(const ClusterConfig& c, const ModelConfig& model, std::int64_t blocks) {
  BatchLimits limits;
  limits.max_tokens = static_cast<std::uint32_t>(c.scheduler.max_step_tokens);
  limits.max_sequences = static_cast<std::uint32_t>(c.cache.max_sequences);
  limits.max_context_tokens = static_cast<std::uint32_t>(
      c.cache.max_context_tokens > 0 ? c.cache.max_context_tokens : model.max_position_embeddings);
  limits.blocks = static_cast<std::uint32_t>(blocks);
  limits.block_tokens = static_cast<std::uint32_t>(c.cache.block_tokens);
  limits.snapshots = static_cast<std::uint32_t>(c.cache.snapshots());
  limits.vocab_size = model.vocab_size;
  return limits;
}

RankMemory plan_rank(const DeviceShape& shape, int stage, int lane) {
  RankMemory out;
  out.stage = stage;
  out.lane = lane;
  out.layers = {shape.shard.layer_begin, shape.shard.layer_end};
  for (std::int32_t i = out.layers.begin; i < out.layers.end; ++i) {
    const bool conv = shape.model->layers[static_cast<std::size_t>(i)] == LayerKind::kShortConv;
    ++(conv ? out.conv_layers : out.attention_layers);
  }
  out.experts = shape.expert_slots();
  out.weight_bytes = device_weight_bytes(*shape.model, shape.shard, shape.weights);
  out.kv_bytes_per_block = static_cast<std::uint64_t>(kv_block_bytes(shape));
  out.conv_bytes = device_slot_bytes(shape);
  out.workspace_bytes = device_workspace_bytes(shape) + kDeviceReservedBytes;
  return out;
}

Error does_not_fit(const RankMemory& rank, std::uint64_t budget, const ClusterConfig& c) {
  const auto gib = [](std::uint64_t bytes) { return static_cast<double>(bytes) / (1ULL << 30); };
  return {ErrorCode::kResourceExhausted, "device.memory_fraction",
          fmt::format(
              "{:.2f} GiB of a device for stage {} lane {} do not hold weights {:.2f}, "
              "workspace {:.2f}, {} slots and {} snapshots {:.2f} and a KV block for each slot "
              "({:.2f} GiB); use fp8 weights, more lanes or stages, or lower "
              "scheduler.max_step_tokens, cache.max_sequences or cache.state_snapshots",
              gib(budget), rank.stage, rank.lane, gib(rank.weight_bytes), gib(rank.workspace_bytes),
              c.cache.max_sequences, c.cache.snapshots(), gib(rank.conv_bytes),
              gib(rank.kv_bytes_per_block * static_cast<std::uint64_t>(c.cache.max_sequences)))};
}

// Blocks that fit beside everything else on every rank.
Result<std::int64_t> blocks_that_fit(const std::vector<RankMemory>& ranks,
                                     const DevicePlanRequest& request) {
  const ClusterConfig& c = request.config;
  const double share = c.device.memory_fraction / c.device.ranks_per_device;
  const auto budget =
      static_cast<std::uint64_t>(static_cast<double>(request.profile.free_bytes) * share);
  std::uint64_t blocks = INT32_MAX;
  for (const RankMemory& rank : ranks) {
    const std::uint64_t taken = rank.weight_bytes + rank.workspace_bytes + rank.conv_bytes;
    const std::uint64_t left = budget > taken ? budget - taken : 0;
    const std::uint64_t fit = rank.kv_bytes_per_block == 0 ? (budget > taken ? blocks : 0)
                                                           : left / rank.kv_bytes_per_block;
    if (fit < static_cast<std::uint64_t>(c.cache.max_sequences)) {
      return does_not_fit(rank, budget, c);
    }
    blocks = std::min(blocks, fit);
  }
  return static_cast<std::int64_t>(blocks);
}

}  // namespace

kernels::DType router_dtype(const TensorSource& source, const ModelConfig& model) {
  if (model.num_experts == 0) return kernels::DType::kBF16;
  const TensorEntry* gate =
      source.find(layer_tensor(model.num_dense_layers, "feed_forward.gate.weight"));
  return gate == nullptr ? kernels::DType::kF32 : gate->dtype;
}

DeviceShape make_device_shape(const ClusterConfig& c, const ModelConfig& model,
                              kernels::DType router, const RankShard& shard,
                              const BatchLimits& limits, int sm_count) {
  DeviceShape shape;
  shape.model = &model;
  shape.shard = shard;
  shape.limits = limits;
  shape.stages = c.grid.stages;
  shape.lanes = c.grid.lanes;
  shape.exact_exchange = c.scheduler.exchange == ExchangeChoice::kAuto ||
                         c.scheduler.exchange == ExchangeChoice::kExact;
  shape.all_gather = c.scheduler.exchange == ExchangeChoice::kAllGather;
  shape.weights.linears = c.device.weights == DeviceWeightFormat::kFp8
                              ? kernels::cuda::WeightFormat::kFp8E4M3
                              : kernels::cuda::WeightFormat::kBf16;
  shape.weights.router = router;
  shape.kv = c.cache.kv_dtype == KvDtype::kFp8 ? kernels::cuda::KvType::kFp8E4M3
                                               : kernels::cuda::KvType::kBf16;
  shape.sm_count = sm_count;
  return shape;
}

std::uint64_t device_workspace_bytes(const DeviceShape& shape) {
  std::uint64_t bytes = arena_bytes([&](ArenaCursor& cursor) {
    DeviceWorkspace workspace;
    lay_out_workspace(cursor, shape, workspace);
  });
  bytes += StepUploader::device_bytes(shape) + SequenceStarter::device_bytes(shape);
  bytes += parallel::DevicePipeline::device_bytes(shape.stages, shape.max_rows(),
                                                  shape.model->hidden_size);
  if (shape.moe_layers() > 0) {
    bytes +=
        parallel::DeviceExpertExchange::planned_bytes(shape.exchange(), shape.moe_layers()).device;
  }
  return bytes;
}

std::uint64_t device_slot_bytes(const DeviceShape& shape) {
  return arena_bytes([&](ArenaCursor& cursor) {
    DeviceState state;
    lay_out_slots(cursor, shape, state);
  });
}

Result<MemoryPlan> plan_device_memory(const DevicePlanRequest& request) {
  const ClusterConfig& c = request.config;
  const kernels::DType router = router_dtype(request.source, request.model);
  const BatchLimits limits = limits_of(c, request.model, 1);
  MemoryPlan plan;
  plan.stages = static_cast<int>(request.ranges.size());
  plan.lanes = static_cast<int>(request.experts.size());
  for (int stage = 0; stage < plan.stages; ++stage) {
    for (int lane = 0; lane < plan.lanes; ++lane) {
      // Every lane has the same number of slots, some of them empty.
      std::vector<std::int32_t> slots = request.experts[static_cast<std::size_t>(lane)];
      slots.resize(
          static_cast<std::size_t>((request.model.num_experts + plan.lanes - 1) / plan.lanes),
          parallel::ExpertPlacement::kEmptySlot);
      const RankShard shard = make_shard(request.model, request.ranges, stage, slots);
      plan.ranks.push_back(plan_rank(
          make_device_shape(c, request.model, router, shard, limits, request.profile.sm_count),
          stage, lane));
    }
  }
  if (c.cache.kv_tokens > 0) {
    plan.kv_blocks = c.cache.kv_tokens / c.cache.block_tokens;
    if (plan.kv_blocks < c.cache.max_sequences) {
      return Error{ErrorCode::kResourceExhausted, "cache.kv_tokens",
                   fmt::format("gives {} KV blocks of {} tokens, fewer than one for each of the {} "
                               "sequences; raise it or lower cache.max_sequences",
                               plan.kv_blocks, c.cache.block_tokens, c.cache.max_sequences)};
    }
  } else {
    const Result<std::int64_t> blocks = blocks_that_fit(plan.ranks, request);
    if (!blocks) return blocks.error();
    plan.kv_blocks = *blocks;
  }
  plan.kv_tokens = plan.kv_blocks * c.cache.block_tokens;
  for (RankMemory& rank : plan.ranks) {
    rank.kv_bytes = rank.kv_bytes_per_block * static_cast<std::uint64_t>(plan.kv_blocks);
  }
  return plan;
}

}  // namespace millrace
