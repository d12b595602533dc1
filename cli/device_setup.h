// Where a cell computes: settles the section `device` of its configuration.
#pragma once

#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "worker/device_backend.h"

namespace millrace {

// Leaves device.backend at cpu or cuda, and with cuda device.profile filled from the devices that
// this machine's workers take. `backend` is null in a build without devices; an explicit cuda is
// then refused. auto takes the CPU when there is no device or the kernels cannot run the model or
// the configuration, and says why in the log.
Result<void> settle_device(ClusterConfig& config, const ModelConfig& model,
                           const DeviceBackend* backend);

// True after settle_device chose devices.
inline bool on_devices(const ClusterConfig& config) {
  return config.device.backend == DeviceChoice::kCuda;
}

// For the `cell`-th of grid.cells cells on this machine: with its own part of device.indices, so
// that no two cells meet. Unchanged for one cell, or on the CPU. `config` is settled.
DeviceSection device_section_of_cell(const ClusterConfig& config, int cell);

}  // namespace millrace
