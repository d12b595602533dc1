// On which cores a worker of the CPU computes, and where its memory lies.
//
// The workers of a machine divide its cores evenly and in order (hwloc_distrib), so that a worker
// spans as few NUMA nodes as their number allows. Memory that a worker first touches, its share of
// the weights above all, comes from the nodes of its cores: preferred when it is one node, from all
// in turn when there are several, since then its threads read at the bandwidth of all of them.
// Pages of a file that were in the page cache before stay where they are.
//
// Results do not depend on any of this.
#pragma once

#include <string>
#include <vector>

#include "config/cluster_config.h"
#include "config/result.h"
#include "worker/topology.h"

namespace millrace {

// A worker among those of this machine.
struct WorkerPlace {
  int index = 0;    // from 0
  int workers = 1;  // of all cells here
  int threads = 1;  // compute threads of each
};

// Lists of the system's indices, as "0-3,8".
struct CpuBinding {
  std::string cores;                      // empty: the worker is not bound
  std::string nodes;                      // whose memory it uses
  std::vector<std::string> thread_cores;  // of each compute thread; empty: each may use `cores`
};

// grid.bind_threads for the worker at `place`. Cores and nodes outside the topology are not used;
// workers share cores when there are more of them than cores.
CpuBinding plan_cpu_binding(const Topology& topology, BindThreads choice, const WorkerPlace& place);

// Binds the calling thread and those that it starts later to the worker's cores and memory. Does
// nothing for a worker that is not bound. An error names grid.bind_threads; memory that the system
// does not let us place (containers often do not) is one only in the returned text, which is empty
// when all was done.
Result<std::string> bind_worker(const Topology& topology, const CpuBinding& binding);

// Binds the calling thread, which is compute thread `thread` of the worker.
Result<void> bind_thread(const Topology& topology, const CpuBinding& binding, int thread);

}  // namespace millrace
