// The road between the coordinator (rank 0 of the world communicator) and the workers: start-up
// reports, step plans, step results.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "worker/step.h"

namespace millrace {

// What a worker tells the coordinator before its first step.
struct StartReport {
  enum class Kind : std::uint8_t { kLoading, kReady, kFailed };
  std::int32_t rank = 0;
  Kind kind = Kind::kLoading;
  std::uint64_t bytes_done = 0;  // of the weights that this rank owns
  std::uint64_t bytes_total = 0;
  std::string detail;  // kFailed: what is wrong; kReady: StepExecutor::transport()

  bool operator==(const StartReport&) const = default;
};

// The worker's end.
class PlanReceiver {
 public:
  explicit PlanReceiver(parallel::Communicator& world) : world_(world) {}

  void report(const StartReport& report);

  // The next plan; waits as long as it takes, nearly for free (an idle cell has no plans). Valid
  // until the next call. Throws CommError, and std::runtime_error for bytes that are no plan.
  const StepPlan& next();
  // The next plan if it is here, else null; the same rules.
  const StepPlan* poll();
  void answer(const StepResult& result);
  // What the worker has done so far; a hint for metrics, so it may be called as rarely as one
  // likes.
  void report(const WorkerReport& report);

 private:
  parallel::Communicator& world_;
  StepPlan plan_;
  std::vector<std::byte> in_;
  std::vector<std::uint8_t> out_;
};

// The coordinator's end.
class PlanSender {
 public:
  explicit PlanSender(parallel::Communicator& world) : world_(world) {}

  // The next report of any worker.
  std::optional<StartReport> next_report(std::chrono::milliseconds timeout);

  void send(const StepPlan& plan);  // to every worker; buffered
  std::optional<StepResult> receive(std::chrono::microseconds timeout);
  // A report that has arrived, of any worker; does not wait.
  std::optional<WorkerReport> worker_report();

 private:
  parallel::Communicator& world_;
  std::vector<std::byte> in_;
  std::vector<std::uint8_t> out_;
};

}  // namespace millrace
