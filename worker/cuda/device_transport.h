// The communicators of one rank for device memory, over those that the cell has for host memory.
#pragma once

#include <memory>

#include "config/cluster_config.h"
#include "config/result.h"
#include "parallel/device_communicator.h"
#include "parallel/process_grid.h"
#include "parallel/staged_communicator.h"
#include "worker/cuda/device_shape.h"

namespace millrace {

struct DeviceComms {
  std::unique_ptr<parallel::DeviceCommunicator> stage;   // null with one lane
  std::unique_ptr<parallel::DeviceCommunicator> column;  // null with one stage
};

// Collective over the cell's workers, which all take the same transport. The device is the
// thread's. Errors name device.transport.
Result<DeviceComms> make_device_comms(const ClusterConfig& config, const DeviceShape& shape,
                                      parallel::CellComms& cell);

}  // namespace millrace
