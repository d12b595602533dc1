// A cell's coordinator: the thread in run() owns the scheduler and drives the workers step by step.
//
// Other threads hand work in through a bounded mailbox (submit, cancel, drain) and read status(),
// an atomic snapshot. Events leave through callbacks, called on the scheduler thread; they must not
// block.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "coordinator/prefill_pacer.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"
#include "coordinator/telemetry.h"
#include "coordinator/worker_link.h"

namespace millrace {

struct CellCallbacks {
  std::function<void(std::vector<TokenEvent>)> on_tokens;  // one call per lane result
  std::function<void(PromptLogprobsEvent)> on_prompt_logprobs;
  // The cell cannot go on: a worker failed or a step passed its deadline. Called once, last. The
  // process is expected to exit non-zero so that the supervisor starts the cell again.
  std::function<void(const std::string& reason)> on_failure;
};

class Cell {
 public:
  struct Options {
    SchedulerLimits limits;
    // From a step's begin to its last result. It begins when its plan is sent; with one stage, when
    // the step before has ended, if that is later.
    std::chrono::milliseconds step_deadline{60'000};
    // An idle cell sends a plan without tokens so often, so that a worker that died or hangs is
    // noticed before a request meets it.
    std::chrono::milliseconds probe_interval{5'000};
    std::size_t mailbox_limit = 65'536;  // messages not yet taken by the scheduler
    // Longest wait of a decoding sequence for a step that takes prompts of others; 0: any.
    std::chrono::milliseconds max_gap{0};
  };

  // `link` must outlive the cell.
  Cell(const Options& options, WorkerLink& link, CellCallbacks callbacks);

  // Serves until stop() or a failure; called once. The calling thread alone uses `link`. Before
  // returning it ends what it has accepted and not finished with kCancelled and the reason: another
  // cell can go on with it. Unless the cell has failed, it sends the workers the shutdown plan.
  // False after a failure.
  bool run();
  void stop();  // thread-safe, idempotent

  Cell(const Cell&) = delete;
  Cell& operator=(const Cell&) = delete;

  // Thread-safe. A refusal arrives as a TokenEvent with finish kError, or kRefused for want of
  // room; false when the mailbox is full or the cell is ending, in which case nothing will arrive.
  bool submit(SequenceRequest request);
  void cancel(RequestId id);
  // status() says from now on that the cell drains, by which gateways know to send no more. What
  // arrives all the same was on its way, and is taken. A cell that ends or has failed says so too.
  void drain();

  CellStatus status() const;
  CellTelemetry telemetry() const { return telemetry_.snapshot(); }
  // Before run(): how long a phase of the start took.
  void note_start_phase(std::string name, std::chrono::duration<float> time) {
    telemetry_.note_start_phase(std::move(name), time);
  }
  bool idle() const;  // nothing queued, running or in the mailbox

 private:
  struct CancelMessage {
    RequestId id;
  };
  using Message = std::variant<SequenceRequest, CancelMessage>;
  struct Sent {
    std::uint64_t step = 0;
    std::chrono::steady_clock::time_point when;
    std::uint64_t tokens = 0;
    std::uint32_t prompt_tokens = 0;  // of the lane that has most of them
  };

  void serve();
  bool step();  // one round: mailbox, plans, results; false when there was nothing to do
  void take_mail();
  void send_plans();
  void send(const StepPlan& plan);
  void plan_finished(std::uint64_t step);
  void note_event(TokenEvent& event);
  bool take_results();
  std::chrono::steady_clock::time_point begin_of(const Sent& sent) const;
  void check_deadline() const;
  void publish_status();
  void end_all(const std::string& sentence);

  const Options options_;
  WorkerLink& link_;
  const CellCallbacks callbacks_;
  Scheduler scheduler_;
  PrefillPacer pacer_;
  // Submitted and not yet finished, to end them at shutdown; with the time of a sequence's first
  // plan, until an event has told it.
  std::unordered_map<RequestId, std::optional<std::chrono::steady_clock::time_point>> live_;
  std::vector<Sent> sent_;  // plans in flight, oldest first
  std::chrono::steady_clock::time_point last_finished_{};
  Telemetry telemetry_;
  std::chrono::steady_clock::time_point last_progress_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Message> mailbox_;
  CellStatus status_;
  bool busy_ = false;
  bool stopping_ = false;
  std::atomic<bool> draining_ = false;
};

}  // namespace millrace
