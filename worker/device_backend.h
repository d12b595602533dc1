// The part of the engine that computes on devices, as the command sees it. A build without CUDA has
// none; main installs the one that it was linked with, tests one over the emulator.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "parallel/expert_placement.h"
#include "parallel/process_grid.h"
#include "worker/memory_plan.h"
#include "worker/step_batch.h"
#include "worker/step_executor.h"
#include "worker/weights.h"

namespace millrace {

struct DeviceFacts {
  int index = 0;
  int compute_capability = 0;  // 90: 9.0
  int sm_count = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::string name;
};

// What a plan needs to know of the devices of a cell: the least of each that its workers get.
struct DeviceProfile {
  int compute_capability = 0;
  int sm_count = 0;
  std::uint64_t free_bytes = 0;
};

// What a device's sampler has room for: alternatives beside each token, and biased tokens of a
// sequence. As much as the API accepts.
inline constexpr std::int32_t kMaxDeviceLogprobs = 20;
inline constexpr std::int32_t kMaxDeviceLogitBias = 1024;

struct DevicePlanRequest {
  const ModelConfig& model;
  const TensorSource& source;
  std::span<const StageRange> ranges;
  std::span<const std::vector<std::int32_t>> experts;  // by lane
  const ClusterConfig& config;
  DeviceProfile profile;
};

struct DeviceWorkerRequest {
  const ClusterConfig& config;  // settled
  const ModelConfig& model;
  const TensorSource& source;
  const RankShard& shard;
  const ModelWeights& weights;  // mapped; needed until make_worker returns
  const BatchLimits& limits;
  const parallel::ExpertPlacement& placement;
  parallel::CellComms& comms;
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
};

class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;

  virtual std::string_view name() const = 0;  // "cuda"

  // Asking a device for its memory makes a context on it, which takes some hundred megabytes of it
  // for as long as the process lives. With `in_this_process` false a short-lived process asks.
  virtual Result<std::vector<DeviceFacts>> devices(bool in_this_process) const = 0;

  // Whether the kernels can run the model; the error names the field.
  virtual Result<void> check(const ModelConfig& model, const ClusterConfig& config) const = 0;
  // Memory of every rank on its device. Blocks of the KV cache from cache.kv_tokens or else as many
  // as device.memory_fraction leaves. Touches no device.
  virtual Result<MemoryPlan> plan(const DevicePlanRequest& request) const = 0;

  // What decides the bits of results beside weights and tokens: "cuda sm_90 bf16".
  virtual std::string numeric_mode(const DeviceProfile& profile,
                                   const ClusterConfig& config) const = 0;

  // Chooses and binds the device of this rank, loads the weights to it, allocates everything. The
  // request's references but `weights` must outlive the worker. Collective over the cell's workers.
  virtual Result<std::unique_ptr<StepExecutor>> make_worker(
      const DeviceWorkerRequest& request) const = 0;
};

// Null until one is installed. Install before any other thread runs.
const DeviceBackend* device_backend();
void install_device_backend(std::unique_ptr<DeviceBackend> backend);

// "9.0:132:149032730624": compute capability, multiprocessors, free bytes (also 139GiB). The error
// names device.profile.
Result<DeviceProfile> parse_device_profile(std::string_view text);
std::string format_device_profile(const DeviceProfile& profile);

// What one process prints for another: "0 9.0 132 150754820096 149032730624 NVIDIA H200", a line
// each.
std::string format_devices(const std::vector<DeviceFacts>& devices);
Result<std::vector<DeviceFacts>> parse_devices(const std::string& text);

}  // namespace millrace
