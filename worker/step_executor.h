// What a rank's worker does for a cell, whether it computes on the CPU (worker/worker.h) or on a
// device (worker/cuda/cuda_worker.h).
//
// Owned by one thread, which does all its communication. What goes wrong is an exception out of
// run() or execute(); the rank must then leave with a failure, so that the cell ends and is started
// again.
#pragma once

#include <string_view>

#include "worker/step.h"

namespace millrace {

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;

  // Takes plans from the coordinator until one says shutdown.
  virtual void run() = 0;

  // One step, without the road from and to the coordinator. The result is valid until the next call
  // and empty unless this is the last stage. A collective of the cell's workers.
  virtual const StepResult& execute(const StepPlan& plan) = 0;

  // All steps so far.
  virtual const WorkerReport& report() const = 0;

  // What carries rows between the cell's workers: "threads", "mpi", "nccl 2.28.9", "staged" (device
  // memory by way of the host); "none" with one worker.
  virtual std::string_view transport() const = 0;
};

}  // namespace millrace
