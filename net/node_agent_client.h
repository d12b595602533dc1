// The leader's end of net/node_agent.h: what mpirun runs in the place of ssh.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/result.h"

namespace millrace::net {

struct NodeAgentCall {
  std::string host;  // name or address of the node
  std::uint16_t port = 0;
  std::string secret;
  std::vector<std::string> command;           // the launcher's words
  std::chrono::milliseconds timeout{10'000};  // connect and handshake; silence afterwards
};

// Has the agent start the daemon and waits for its end: its exit status. What the daemon writes
// goes to `on_output` meanwhile. An error when the agent cannot be reached, does not show the
// secret, refuses, or is lost; it ends what it started in the last case, unless it died itself (its
// processes die with it). When the calling process ends, so does everything on the node.
Result<int> call_node_agent(const NodeAgentCall& call,
                            const std::function<void(std::string_view)>& on_output);

}  // namespace millrace::net
