// How a node agent runs Open MPI's daemon: with a folder of its own, a tag in the environment that
// all its descendants inherit, and a certain end.
#pragma once

#include "net/node_agent.h"

namespace millrace {

// Starts daemons whose programs go through `rank-exec` of this binary. Refuses a leader of the same
// host name.
net::DaemonLauncher daemon_launcher();

// Removes the folders that agents which were killed left behind, in /dev/shm and /tmp. Their
// processes have died with them.
void remove_orphaned_scratch();

}  // namespace millrace
