// Commands of a cell over several nodes: the agent of another node, and the two helpers that Open
// MPI runs for it.
#pragma once

#include <string>
#include <vector>

#include "config/cluster_config.h"

namespace millrace {

// `millrace node-agent`: serves leaders until SIGINT or SIGTERM, then ends everything it started.
int run_node_agent(const ClusterConfig& config);

// `millrace agent-exec --config F HOST COMMAND...`, mpirun's launch agent in the place of ssh: has
// HOST's agent start the daemon and returns the daemon's exit status; 255, as ssh, when that fails.
int run_agent_exec(const ClusterConfig& config, const std::vector<std::string>& words);

// `millrace rank-exec PROGRAM worker ...`: what a daemon that an agent started runs before each
// program. Goes on as `worker` of this binary and refuses every other program, so that an agent's
// node runs nothing but ranks.
int run_rank_exec(const std::vector<std::string>& words);

}  // namespace millrace
