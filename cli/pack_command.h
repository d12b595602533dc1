// `millrace pack`: writes a model in the packed form of the CPU kernels, to be mapped at the start.
#pragma once

#include <string>

#include "config/cluster_config.h"

namespace millrace {

struct PackCommand {
  ClusterConfig config;  // model.path and model.cpu_weights
  std::string out;
};

// Exit status of the command.
int run_pack(const PackCommand& command);

}  // namespace millrace
