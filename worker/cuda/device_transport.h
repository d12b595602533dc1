// The communicators of one rank for device memory, over those that the cell has for host memory.
#pragma once

#include <functional>
#include <memory>

#include "config/cluster_config.h"
#include "config/result.h"
#include "parallel/device_communicator.h"
#include "parallel/nccl_api.h"
#include "parallel/process_grid.h"
#include "parallel/staged_communicator.h"
#include "worker/cuda/device_shape.h"

namespace millrace {

struct DeviceComms {
  std::unique_ptr<parallel::DeviceCommunicator> stage;   // null with one lane
  std::unique_ptr<parallel::DeviceCommunicator> column;  // null with one stage
};

// NCCL refuses two ranks on one device of one host; with an NCCL_HOSTID of its own each of them
// counts as a host, and they talk over sockets. For tests, before the library is loaded; what the
// environment says already stays. Only where each rank is a process: threads share the environment.
void take_nccl_host_id(int rank);

using NcclLoader = std::function<Result<const parallel::NcclApi*>()>;

// Collective over the cell's workers, which all take the same transport. The device is the
// thread's. Errors name device.transport.
Result<DeviceComms> make_device_comms(const ClusterConfig& config, const DeviceShape& shape,
                                      parallel::CellComms& cell,
                                      const NcclLoader& load_nccl = parallel::load_nccl);

}  // namespace millrace
