// What a cell's supervisor answers to probes (contract C4). Each says why not; empty: yes.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "coordinator/supervisor.h"

namespace millrace {

// Some cell of this supervisor has been ready: the start-up is over, whatever came then.
std::string why_not_started(const SupervisorStatus& status);

// All ranks have loaded, a gateway is linked, a step finished within `progress_limit` or there is
// nothing to do, and the cell does not drain.
std::string why_not_ready(const SupervisorStatus& status, std::chrono::milliseconds progress_limit);

// The supervisor itself goes on. It ends a cell without progress and starts it again, faster than
// whoever could start the supervisor again; so a cell that is down, or whose gateways are, is no
// reason.
std::string why_not_live(const SupervisorStatus& status);

std::string_view to_string(CellPhase phase);

}  // namespace millrace
