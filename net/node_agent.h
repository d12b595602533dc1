// The agent on another node of a cell: starts Open MPI's daemon for a leader that shows the shared
// secret, and ends everything it started when that leader's connection ends.
//
// One connection is one daemon. The leader's mpirun runs a helper (net/node_agent_client.h) in the
// place of ssh; the helper connects, both prove the secret (net/psk_tls.h), and it sends the words
// of the launcher (net/orted_command.h). From then on the connection is the daemon's life: pings go
// both ways, and its end for whatever reason (mpirun exited or crashed, the node died, close())
// ends the daemon and all its descendants.
//
// How processes are run and ended is injected, since that belongs to coordinator.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "config/result.h"
#include "net/orted_command.h"

namespace millrace::net {

// A started daemon. Calls come from one thread at a time.
class DaemonProcess {
 public:
  virtual ~DaemonProcess() = default;
  virtual int output() const = 0;  // read end of its standard output and error, non-blocking
  // Its exit status as a shell counts it (128 + signal), or nullopt while it runs.
  virtual std::optional<int> poll_exit() = 0;
  // Kills it and everything it started, and removes its files. Blocks until done, for seconds at
  // most. Idempotent. Called on a helper thread.
  virtual void end() = 0;
};

// Called on the thread of the io_context, which must live as long as the process.
using DaemonLauncher =
    std::function<Result<std::unique_ptr<DaemonProcess>>(const OrtedCommand& command)>;

struct NodeAgentOptions {
  std::string host = "0.0.0.0";
  std::uint16_t port = 7700;  // 0: any free one
  std::string secret;
  std::chrono::milliseconds timeout{10'000};  // handshake, first message, and silence
  std::uint32_t max_connections = 16;         // daemons at the same time
};

class NodeAgent {
 public:
  // `io` runs on one thread.
  NodeAgent(boost::asio::io_context& io, NodeAgentOptions options, DaemonLauncher launcher);
  ~NodeAgent();  // the io_context must have run out of work after close(), or be stopped

  // Binds and starts accepting. The error names the address.
  Result<void> listen();
  std::uint16_t port() const;
  std::uint32_t running() const;  // daemons

  // New leaders find nobody here; daemons that run stay until their leaders let them go.
  void stop_listening();
  // Stops listening and ends every daemon. io.run() returns when all of them are gone.
  void close();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace millrace::net
