#include "worker/cuda/cuda_backend.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "kernels/cuda/runtime.h"
#include "worker/cuda/cuda_worker.h"
#include "worker/cuda/device_binding.h"
#include "worker/cuda/device_memory_plan.h"
#include "worker/cuda/device_probe.h"
#include "worker/cuda/device_transport.h"

namespace millrace {

namespace {

using kernels::cuda::CudaError;

// More threads than this only compete for the memory that they read.
constexpr int kMaxLoadThreads = 8;

Result<void> check_profile(const ClusterConfig& config, const kernels::cuda::DeviceInfo& device) {
  const Result<DeviceProfile> profile = parse_device_profile(config.device.profile);
  if (!profile) return profile.error();
  if (profile->compute_capability != device.cc()) {
    return Error{
        ErrorCode::kUnsupported, "device.profile",
        fmt::format("device {} ({}) has compute capability {}.{}, the cell was planned for "
                    "{}.{}: results would differ between its workers; choose alike devices "
                    "with device.indices",
                    device.index, device.name, device.cc_major, device.cc_minor,
                    profile->compute_capability / 10, profile->compute_capability % 10)};
  }
  return {};
}

// Chooses the rank's device, which becomes the thread's.
Result<kernels::cuda::DeviceInfo> take_device(const DeviceWorkerRequest& request) {
  const Result<int> index = choose_device(request.config.device, request.comms.local_index,
                                          kernels::cuda::device_count());
  if (!index) return index.error();
  kernels::cuda::set_device(*index);
  kernels::cuda::DeviceInfo device = kernels::cuda::device_info(*index);
  if (auto checked = check_profile(request.config, device); !checked) return checked.error();
  const bool bound = request.config.device.bind_numa && bind_near(device.pci_bus_id);
  spdlog::info("rank {}: device {} {} at {}, {:.1f} GiB free{}", request.comms.world->rank(),
               device.index, device.name, device.pci_bus_id,
               static_cast<double>(device.memory_free_bytes) / (1ULL << 30),
               bound ? ", bound to its node" : "");
  return device;
}

class CudaBackend final : public DeviceBackend {
 public:
  explicit CudaBackend(std::string probe_program) : probe_program_(std::move(probe_program)) {}

  std::string_view name() const override { return "cuda"; }

  Result<std::vector<DeviceFacts>> devices(bool in_this_process) const override {
    if (!in_this_process && !probe_program_.empty()) return ask_program(probe_program_);
    try {
      return ask_devices();
    } catch (const CudaError& error) {
      return Error{
          ErrorCode::kUnavailable, "device.backend",
          fmt::format("{}; set device.backend to cpu to go on without devices", error.what())};
    }
  }

  Result<void> check(const ModelConfig& model, const ClusterConfig& config) const override {
    return check_device_model(model, config.cache.block_tokens);
  }

  Result<MemoryPlan> plan(const DevicePlanRequest& request) const override {
    return plan_device_memory(request);
  }

  std::string numeric_mode(const DeviceProfile& profile,
                           const ClusterConfig& config) const override {
    const bool fp8 = config.device.weights == DeviceWeightFormat::kFp8;
    return fmt::format("cuda sm_{} {}", profile.compute_capability, fp8 ? "fp8" : "bf16");
  }

  Result<std::unique_ptr<StepExecutor>> make_worker(
      const DeviceWorkerRequest& request) const override {
    try {
      return make(request);
    } catch (const CudaError& error) {
      if (error.code() != kernels::cuda::kErrorMemoryAllocation) throw;
      if (error.operation() == "cudaHostAlloc") {
        return Error{ErrorCode::kResourceExhausted, "",
                     fmt::format("{}: no page-locked host memory; see the limits of this container "
                                 "(ulimit -l)",
                                 error.what())};
      }
      return Error{ErrorCode::kResourceExhausted, "device.memory_fraction",
                   fmt::format("{}: the device has less free memory than was planned; lower it, or "
                               "end what else runs there",
                               error.what())};
    }
  }

 private:
  static Result<std::unique_ptr<StepExecutor>> make(const DeviceWorkerRequest& request) {
    const auto device = take_device(request);
    if (!device) return device.error();
    const DeviceShape shape = make_device_shape(request.config, request.model,
                                                router_dtype(request.source, request.model),
                                                request.shard, request.limits, device->sm_count);
    DeviceLoadOptions load;
    load.format = shape.weights;
    load.threads = std::clamp(request.config.grid.threads_per_rank, 1, kMaxLoadThreads);
    load.progress = request.progress;
    auto weights = DeviceWeights::load(request.model, request.shard, request.weights, load);
    if (!weights) return weights.error();
    auto comms = make_device_comms(request.config, shape, request.comms);
    if (!comms) return comms.error();
    CudaWorkerOptions options;
    options.graphs = request.config.device.graphs;
    options.overlap_launches = request.config.device.overlap_launches;
    options.step_deadline = std::chrono::milliseconds(request.config.deadlines.step_ms);
    return std::unique_ptr<StepExecutor>(std::make_unique<CudaWorker>(
        options, shape, std::move(*weights), request.placement, request.comms, std::move(*comms)));
  }

  std::string probe_program_;
};

}  // namespace

std::unique_ptr<DeviceBackend> make_cuda_backend(std::string probe_program) {
  return std::make_unique<CudaBackend>(std::move(probe_program));
}

}  // namespace millrace
