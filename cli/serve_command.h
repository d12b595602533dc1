// `millrace serve`, `gateway` and `cell`: the long-running processes.
#pragma once

#include "config/cluster_config.h"

namespace millrace {

// Gateway and cells on this machine. All three return the exit status after SIGINT or SIGTERM, when
// everything they started has ended.
int run_serve(const ClusterConfig& config);

// The gateway alone; cells dial gateway.cell_host:cell_port.
int run_gateway(const ClusterConfig& config);

// One cell's supervisor; the cell dials cell.gateways.
int run_cell(const ClusterConfig& config);

}  // namespace millrace
