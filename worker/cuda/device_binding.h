// Which device a rank computes on, and the cores and memory near it.
#pragma once

#include <string>

#include "config/cluster_config.h"
#include "config/result.h"

namespace millrace {

// The CUDA index for the `local_index`-th worker of this machine, of `devices` that there are.
// Errors name device.indices or device.ranks_per_device.
Result<int> choose_device(const DeviceSection& device, int local_index, int devices);

// Binds the calling thread, and those it starts later, to the cores nearest to the PCI device
// ("0000:3b:00.0"), and prefers their memory. False when that place is not known here (a virtual
// machine that hides it): nothing is changed then.
bool bind_near(const std::string& pci_bus_id);

}  // namespace millrace
