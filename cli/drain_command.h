// `millrace drain`: orders a server of this machine to drain, and waits until it has.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

struct DrainCommand {
  std::string url;
  std::int64_t pause_ms = 0;     // new work is still taken for so long
  std::int64_t timeout_s = 300;  // of the whole, the pause included
};

// 0 when everything finished; 1 when something was cut, or the order could not be given.
int run_drain(const DrainCommand& command);

}  // namespace millrace
