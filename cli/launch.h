// The mpirun command of a cell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/cluster_config.h"

namespace millrace {

// Runs `worker --config config_file --epoch epoch` of this binary as 1 + stages x lanes ranks.
// Session files and shared-memory segments go into `scratch`, which the supervisor removes.
//
// With cell.hosts, rank 0 and the first workers run here and the others on the nodes in order. With
// node_agent.secret_file, mpirun reaches them through `agent-exec` of this binary and the node's
// agent, which puts a folder of its own in the place of `scratch`; otherwise by ssh, and `scratch`
// must be possible to create there.
std::vector<std::string> mpirun_command(const ClusterConfig& config, const std::string& config_file,
                                        std::uint64_t epoch, const std::string& scratch);

// A node of a cell and how many of its workers run there.
struct HostWorkers {
  std::string host;
  int workers = 0;
};
// cell.hosts in order: those with a number are filled first, the others share the rest evenly, the
// earlier of them taking one more where it does not divide. Empty for a cell of one machine.
std::vector<HostWorkers> place_on_hosts(const ClusterConfig& config);

// Path of the running executable.
std::string self_path();

}  // namespace millrace
