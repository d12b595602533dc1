#include "worker/topology.h"

#include <hwloc.h>

namespace millrace {

void DestroyTopology::operator()(hwloc_topology* topology) const {
  hwloc_topology_destroy(topology);
}

Topology load_topology(TopologyScope scope) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  Topology topology(raw);
  if (scope == TopologyScope::kDevices) {
    hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  } else {
    hwloc_topology_set_flags(
        raw, HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM | HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING);
  }
  return hwloc_topology_load(raw) == 0 ? std::move(topology) : nullptr;
}

Topology synthetic_topology(const std::string& description) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  Topology topology(raw);
  if (hwloc_topology_set_synthetic(raw, description.c_str()) != 0) return nullptr;
  return hwloc_topology_load(raw) == 0 ? std::move(topology) : nullptr;
}

}  // namespace millrace
