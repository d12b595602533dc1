#include "coordinator/cell.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "config/check.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;

// How long the scheduler thread waits for a result before it looks at its mailbox again. A new
// request joins at a step boundary anyway, so this only bounds the wait when the pipeline has a
// free place.
constexpr std::chrono::microseconds kResultWait{500};

TokenEvent ending(RequestId id, FinishReason reason, std::string error) {
  TokenEvent event;
  event.id = id;
  event.has_token = false;
  event.finish = reason;
  event.error = std::move(error);
  return event;
}

}  // namespace

Cell::Cell(const Options& options, WorkerLink& link, CellCallbacks callbacks)
    : options_(options),
      link_(link),
      callbacks_(std::move(callbacks)),
      scheduler_(options.limits),
      last_progress_(Clock::now()) {}

void Cell::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
}

bool Cell::submit(SequenceRequest request) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || mailbox_.size() >= options_.mailbox_limit) return false;
    mailbox_.emplace_back(std::move(request));
  }
  wake_.notify_one();
  return true;
}

void Cell::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    mailbox_.emplace_back(CancelMessage{id});  // never refused: it only makes the cell emptier
  }
  wake_.notify_one();
}

void Cell::drain() { draining_ = true; }

CellStatus Cell::status() const {
  const std::lock_guard lock(mutex_);
  CellStatus status = status_;
  status.draining = draining_;
  if (busy_) {
    status.ms_since_progress = static_cast<std::uint32_t>(
        std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last_progress_)
            .count());
  }
  return status;
}

bool Cell::idle() const {
  const std::lock_guard lock(mutex_);
  return mailbox_.empty() && !busy_;
}

bool Cell::run() {
  try {
    serve();
    end_all();
    StepPlan last;
    last.shutdown = true;
    link_.send(last);
    return true;
  } catch (const std::exception& e) {
    spdlog::error("cell: {}", e.what());
    end_all();
    if (callbacks_.on_failure) callbacks_.on_failure(e.what());
    return false;
  }
}

void Cell::serve() {
  while (true) {
    if (step()) continue;
    std::unique_lock lock(mutex_);
    const bool woken = wake_.wait_for(lock, options_.probe_interval,
                                      [this] { return stopping_ || !mailbox_.empty(); });
    if (stopping_) return;
    lock.unlock();
    if (!woken) send(scheduler_.probe_plan());
  }
}

bool Cell::step() {
  bool stopping = false;
  {
    const std::lock_guard lock(mutex_);
    stopping = stopping_;
  }
  take_mail();
  // Plans in flight are finished before leaving, so that the workers see the shutdown plan last.
  if (!stopping) send_plans();
  bool worked = false;
  if (scheduler_.plans_in_flight() > 0) {
    worked = take_results();
    check_deadline();
  }
  publish_status();
  return worked || scheduler_.plans_in_flight() > 0;
}

void Cell::take_mail() {
  std::vector<Message> mail;
  {
    const std::lock_guard lock(mutex_);
    mail.swap(mailbox_);
    if (!mail.empty() && !busy_) {
      busy_ = true;
      last_progress_ = Clock::now();
    }
  }
  for (Message& message : mail) {
    if (const auto* cancel = std::get_if<CancelMessage>(&message)) {
      if (!scheduler_.cancel(cancel->id)) continue;
      std::erase(live_, cancel->id);
      callbacks_.on_tokens({ending(cancel->id, FinishReason::kCancelled, "")});
      continue;
    }
    auto& request = std::get<SequenceRequest>(message);
    const RequestId id = request.id;
    if (Result<void> ok = scheduler_.submit(std::move(request)); !ok) {
      callbacks_.on_tokens({ending(id, FinishReason::kError, ok.error().to_string())});
    } else {
      live_.push_back(id);
    }
  }
}

void Cell::send_plans() {
  while (std::optional<StepPlan> plan = scheduler_.next_plan()) send(*plan);
}

void Cell::send(const StepPlan& plan) {
  Sent sent{plan.step, Clock::now(), 0};
  for (const LanePlan& lane : plan.lanes) {
    for (const Chunk& chunk : lane.chunks) sent.tokens += chunk.tokens.size();
  }
  if (sent.tokens > 0) telemetry_.note_sent(sent.when);
  sent_.push_back(sent);
  link_.send(plan);
}

// One stage works on one plan at a time; the stages of a pipeline on several.
Clock::time_point Cell::begin_of(const Sent& sent) const {
  return options_.limits.stages == 1 ? std::max(sent.when, last_finished_) : sent.when;
}

void Cell::plan_finished(std::uint64_t step) {
  const auto it = std::ranges::find(sent_, step, &Sent::step);
  const auto now = Clock::now();
  if (it->tokens > 0) telemetry_.note_finished(begin_of(*it), now, it->tokens);
  last_finished_ = now;
  sent_.erase(it);
}

bool Cell::take_results() {
  std::optional<StepResult> result = link_.receive(kResultWait);
  if (!result) return false;
  Result<Scheduler::Events> events = scheduler_.on_result(*result);
  if (!events) throw std::runtime_error("step result: " + events.error().to_string());
  for (PromptLogprobsEvent& event : events->prompt_logprobs) {
    callbacks_.on_prompt_logprobs(std::move(event));
  }
  for (const TokenEvent& event : events->tokens) {
    if (event.finish != FinishReason::kNone) std::erase(live_, event.id);
  }
  if (!events->tokens.empty()) callbacks_.on_tokens(std::move(events->tokens));
  if (events->plan_finished) plan_finished(result->step);
  while (const std::optional<WorkerReport> report = link_.worker_report()) {
    telemetry_.note_report(*report, Clock::now());
  }
  const std::lock_guard lock(mutex_);
  last_progress_ = Clock::now();
  return true;
}

void Cell::check_deadline() const {
  if (sent_.empty() || Clock::now() - begin_of(sent_.front()) < options_.step_deadline) return;
  throw std::runtime_error(fmt::format("step {} has not finished within its deadline of {} ms",
                                       sent_.front().step, options_.step_deadline.count()));
}

void Cell::publish_status() {
  const CellStatus now = scheduler_.status();
  const bool idle = scheduler_.idle();
  const std::lock_guard lock(mutex_);
  status_ = now;
  if (!idle && !busy_) last_progress_ = Clock::now();
  busy_ = !idle;
}

void Cell::end_all() {
  std::vector<TokenEvent> events;
  for (const RequestId id : live_) {
    events.push_back(ending(id, FinishReason::kCancelled, "the cell is ending"));
  }
  live_.clear();
  if (!events.empty()) callbacks_.on_tokens(std::move(events));
}

}  // namespace millrace
