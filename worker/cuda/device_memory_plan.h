// The memory of every rank on its device, known before anything is loaded. Computed by the
// functions that lay the memory out, so plan and allocation cannot differ.
#pragma once

#include <cstdint>

#include "worker/cuda/device_shape.h"
#include "worker/device_backend.h"

namespace millrace {

// The shape of one rank. limits.blocks may be 0 while it is not known.
DeviceShape make_device_shape(const ClusterConfig& config, const ModelConfig& model,
                              kernels::DType router, const RankShard& shard,
                              const BatchLimits& limits, int sm_count);

// The router's number format in the checkpoint (of its first MoE layer); bf16 for dense models.
kernels::DType router_dtype(const TensorSource& source, const ModelConfig& model);

// For what is not ours beside the context: the kernels' modules and local memory, NCCL's buffers.
// Part of a rank's workspace in the plan.
inline constexpr std::uint64_t kDeviceReservedBytes = 256ULL << 20;

// Without weights, KV pages and conv state: activations, logits, exchange, inputs.
std::uint64_t device_workspace_bytes(const DeviceShape& shape);
// Conv state, block tables and sampling state.
std::uint64_t device_slot_bytes(const DeviceShape& shape);

// DeviceBackend::plan. Errors name the field: device.memory_fraction or cache.kv_tokens when the
// weights, the workspace and one KV block per sequence do not fit.
Result<MemoryPlan> plan_device_memory(const DevicePlanRequest& request);

}  // namespace millrace
