#include "worker/cuda/device_binding.h"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>

#include "worker/topology.h"

namespace millrace {

Result<int> choose_device(const DeviceSection& device, int local_index, int devices) {
  for (const std::string& index : device.indices) {
    if (std::stoi(index) >= devices) {
      return invalid("device.indices",
                     fmt::format("device {} is not there: this machine has {}", index, devices));
    }
  }
  const int usable = device.indices.empty() ? devices : static_cast<int>(device.indices.size());
  const int at = local_index / device.ranks_per_device;
  if (at >= usable) {
    return Error{ErrorCode::kResourceExhausted, "device.ranks_per_device",
                 fmt::format("worker {} of this machine finds none of its {} devices free; use "
                             "fewer workers, or let several share a device",
                             local_index, usable)};
  }
  return device.indices.empty() ? at : std::stoi(device.indices[static_cast<std::size_t>(at)]);
}

bool bind_near(const std::string& pci_bus_id) {
  const Topology topology = load_topology(TopologyScope::kDevices);
  if (!topology) return false;
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(topology.get(), pci_bus_id.c_str());
  if (device == nullptr) return false;
  const hwloc_obj_t place = hwloc_get_non_io_ancestor_obj(topology.get(), device);
  if (place == nullptr || place->cpuset == nullptr || hwloc_bitmap_iszero(place->cpuset)) {
    return false;
  }
  // Memory only preferred: a full node must not end the process.
  hwloc_set_membind(topology.get(), place->cpuset, HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_THREAD);
  return hwloc_set_cpubind(topology.get(), place->cpuset, HWLOC_CPUBIND_THREAD) == 0;
}

}  // namespace millrace
