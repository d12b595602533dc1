// The mpirun command of a cell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/cluster_config.h"

namespace millrace {

// Runs `worker --config config_file --epoch epoch` of this binary as 1 + stages x lanes ranks.
// Session files and shared-memory segments go into `scratch`, which the supervisor removes.
std::vector<std::string> mpirun_command(const ClusterConfig& config, const std::string& config_file,
                                        std::uint64_t epoch, const std::string& scratch);

// Path of the running executable.
std::string self_path();

}  // namespace millrace
