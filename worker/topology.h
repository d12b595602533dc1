// The cores, NUMA nodes and devices of this machine, as hwloc finds them.
#pragma once

#include <memory>
#include <string>

struct hwloc_topology;

namespace millrace {

struct DestroyTopology {
  void operator()(hwloc_topology* topology) const;
};
using Topology = std::unique_ptr<hwloc_topology, DestroyTopology>;

enum class TopologyScope {
  kAllowed,  // the cores and nodes that this process may use: its affinity and control groups count
  kDevices,  // the machine with its PCI devices
};

// Null when hwloc fails.
Topology load_topology(TopologyScope scope);

// A machine as hwloc's notation describes it ("pack:2 core:4 pu:2"), to plan for machines that are
// not here; nothing can be bound to it. Null when the text is none.
Topology synthetic_topology(const std::string& description);

}  // namespace millrace
