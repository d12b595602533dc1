// The coordinator's view of its workers. Implementations: over a communicator (threads or MPI), and
// a scripted one in tests.
#pragma once

#include <chrono>
#include <optional>

#include "worker/step.h"

namespace millrace {

// Used by one thread. A failure of the transport is an exception; the cell cannot go on after it.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;

  // Sends the plan to every worker. May buffer; returns without waiting for the step.
  virtual void send(const StepPlan& plan) = 0;

  // The next result of any lane of the last stage, waiting up to `timeout`.
  virtual std::optional<StepResult> receive(std::chrono::microseconds timeout) = 0;

  // A worker's report that has arrived; does not wait.
  virtual std::optional<WorkerReport> worker_report() = 0;
};

}  // namespace millrace
