#include "cli/device_setup.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "cli/launch.h"

namespace millrace {

namespace {

Error no_cuda() {
  return {ErrorCode::kUnsupported, "device.backend",
          "cuda: this build has no CUDA; build with the preset cuda, or set auto or cpu"};
}

// The devices that may be used, in the order in which workers take them.
Result<std::vector<DeviceFacts>> usable(const DeviceSection& section,
                                        const std::vector<DeviceFacts>& all) {
  if (section.indices.empty()) return all;
  std::vector<DeviceFacts> out;
  for (const std::string& index : section.indices) {
    const auto at = static_cast<std::size_t>(std::stoi(index));
    if (at >= all.size()) {
      return invalid("device.indices",
                     fmt::format("device {} is not there: this machine has {}", index, all.size()));
    }
    out.push_back(all[at]);
  }
  return out;
}

// Whole devices for each cell.
int devices_needed(const ClusterConfig& c) {
  const int per_device = c.device.ranks_per_device;
  const int workers =
      c.cell.hosts.empty() ? c.grid.stages * c.grid.lanes : place_on_hosts(c).front().workers;
  return c.grid.cells * std::max(1, (workers + per_device - 1) / per_device);
}

// The least that any of the workers gets.
Result<DeviceProfile> profile_of(const ClusterConfig& c, const std::vector<DeviceFacts>& devices) {
  const int needed = devices_needed(c);
  if (needed > static_cast<int>(devices.size())) {
    return Error{ErrorCode::kResourceExhausted, "device.indices",
                 fmt::format("{} devices are needed, {} can be used here; use fewer stages, lanes "
                             "or cells, or for tests device.ranks_per_device",
                             needed, devices.size())};
  }
  DeviceProfile least{devices[0].compute_capability, devices[0].sm_count, devices[0].free_bytes};
  for (int i = 0; i < needed; ++i) {
    const DeviceFacts& d = devices[static_cast<std::size_t>(i)];
    if (d.compute_capability != least.compute_capability) {
      return invalid("device.indices",
                     fmt::format("{} and {} differ in compute capability, and so would their "
                                 "results; choose alike devices",
                                 devices[0].name, d.name));
    }
    least.sm_count = std::min(least.sm_count, d.sm_count);
    least.free_bytes = std::min(least.free_bytes, d.free_bytes);
  }
  return least;
}

// Fills in the profile. No devices at all: kNotFound.
Result<void> settle_profile(ClusterConfig& config, const DeviceBackend& backend) {
  if (!config.device.profile.empty()) {
    const Result<DeviceProfile> given = parse_device_profile(config.device.profile);
    return given ? Result<void>() : Result<void>(given.error());
  }
  const auto all = backend.devices(config.grid.embedded);
  if (!all) return all.error();
  if (all->empty()) {
    return Error{ErrorCode::kNotFound, "device.backend",
                 "cuda: this machine has no device; set auto or cpu"};
  }
  const auto devices = usable(config.device, *all);
  if (!devices) return devices.error();
  const Result<DeviceProfile> profile = profile_of(config, *devices);
  if (!profile) return profile.error();
  config.device.profile = format_device_profile(*profile);
  if (config.grid.cells > 1 && config.device.indices.empty()) {
    for (const DeviceFacts& d : *devices) config.device.indices.push_back(std::to_string(d.index));
  }
  return {};
}

Result<void> check_for_devices(const ClusterConfig& config, const ModelConfig& model,
                               const DeviceBackend& backend) {
  if (config.cache.kv_dtype == KvDtype::kF32) {
    return invalid("cache.kv_dtype", "f32 needs device.backend cpu; devices have bf16 and fp8");
  }
  if (config.grid.embedded && config.grid.cells > 1) {
    return invalid("grid.cells", "several cells on devices must be processes; embedded takes one");
  }
  if (config.grid.embedded && config.device.ranks_per_device > 1 &&
      config.device.transport == DeviceTransport::kNccl) {
    return invalid("device.transport",
                   "nccl takes several workers on a device only as processes; set grid.embedded to "
                   "false, or staged");
  }
  return backend.check(model, config);
}

Result<void> check_for_cpu(const ClusterConfig& config) {
  if (config.cache.kv_dtype == KvDtype::kFp8) {
    return invalid("cache.kv_dtype", "fp8 needs devices; the CPU has f32 and bf16");
  }
  return {};
}

}  // namespace

Result<void> settle_device(ClusterConfig& config, const ModelConfig& model,
                           const DeviceBackend* backend) {
  const DeviceChoice wanted = config.device.backend;
  if (wanted == DeviceChoice::kCpu) return check_for_cpu(config);
  if (wanted == DeviceChoice::kCuda) {
    if (backend == nullptr) return no_cuda();
    if (auto checked = check_for_devices(config, model, *backend); !checked) return checked;
    return settle_profile(config, *backend);
  }
  if (backend != nullptr) {
    Result<void> found = check_for_devices(config, model, *backend);
    if (found) found = settle_profile(config, *backend);
    if (found) {
      config.device.backend = DeviceChoice::kCuda;
      return {};
    }
    if (found.error().code != ErrorCode::kNotFound) {
      spdlog::warn("not on devices: {}", found.error().to_string());
    }
  }
  config.device.backend = DeviceChoice::kCpu;
  return check_for_cpu(config);
}

DeviceSection device_section_of_cell(const ClusterConfig& config, int cell) {
  DeviceSection section = config.device;
  if (config.grid.cells == 1 || !on_devices(config)) return section;
  const int workers = config.grid.stages * config.grid.lanes;
  const int each = (workers + section.ranks_per_device - 1) / section.ranks_per_device;
  section.indices.assign(config.device.indices.begin() + cell * each,
                         config.device.indices.begin() + (cell + 1) * each);
  return section;
}

}  // namespace millrace
