// The one exception of this folder: a peer did not answer in time, or the transport failed.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>

namespace millrace::parallel {

inline constexpr int kNoPeer = -1;

// Fail-stop: after a CommError the communicator that threw it is broken and every later call on it
// throws at once. The owner of the rank lets go of its work and leaves: a process with a non-zero
// exit (parallel/mpi_communicator.h, exit_after_failure), a thread of a group after
// Communicator::abort().
class CommError : public std::runtime_error {
 public:
  CommError(std::string operation, int peer, std::chrono::milliseconds deadline,
            std::string detail);

  const std::string& operation() const { return operation_; }  // "all_to_all", "recv", ...
  int peer() const { return peer_; }  // the rank waited for, kNoPeer when no single one is to blame
  std::chrono::milliseconds deadline() const { return deadline_; }
  const std::string& detail() const { return detail_; }

 private:
  std::string operation_;
  int peer_;
  std::chrono::milliseconds deadline_;
  std::string detail_;
};

}  // namespace millrace::parallel
