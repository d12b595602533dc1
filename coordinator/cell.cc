#include "coordinator/cell.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>
#include <utility>

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
      pacer_(options.max_gap, options.limits.max_step_tokens),
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
  status.draining = draining_ || stopping_;
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
    end_all("the cell is ending");
    StepPlan last;
    last.shutdown = true;
    link_.send(last);
    return true;
  } catch (const std::exception& e) {
    spdlog::error("cell: {}", e.what());
    end_all(fmt::format("the cell failed: {}", e.what()));
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
      live_.erase(cancel->id);
      callbacks_.on_tokens({ending(cancel->id, FinishReason::kCancelled, "")});
      continue;
    }
    auto& request = std::get<SequenceRequest>(message);
    const RequestId id = request.id;
    if (Result<void> ok = scheduler_.submit(std::move(request)); !ok) {
      const bool for_good = ok.error().code == ErrorCode::kInvalidArgument;
      callbacks_.on_tokens({ending(id, for_good ? FinishReason::kError : FinishReason::kRefused,
                                   ok.error().to_string())});
    } else {
      live_.try_emplace(id);
    }
  }
}

void Cell::send_plans() {
  while (std::optional<StepPlan> plan = scheduler_.next_plan()) {
    send(*plan);
    for (const RequestId id : scheduler_.take_first_planned()) live_.at(id) = sent_.back().when;
  }
}

void Cell::send(const StepPlan& plan) {
  Sent sent{plan.step, Clock::now()};
  for (const LanePlan& lane : plan.lanes) {
    std::uint32_t prompt_tokens = 0;
    for (const Chunk& chunk : lane.chunks) {
      sent.tokens += chunk.tokens.size();
      const auto tokens = static_cast<std::uint32_t>(chunk.tokens.size());
      if (tokens > 1 || !chunk.sample) prompt_tokens += tokens;  // else a decode, most likely
    }
    sent.prompt_tokens = std::max(sent.prompt_tokens, prompt_tokens);
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
  pacer_.note(it->prompt_tokens, now - begin_of(*it));
  scheduler_.limit_prefill(pacer_.tokens());
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
  for (TokenEvent& event : events->tokens) note_event(event);
  if (!events->tokens.empty()) callbacks_.on_tokens(std::move(events->tokens));
  if (events->plan_finished) plan_finished(result->step);
  while (const std::optional<WorkerReport> report = link_.worker_report()) {
    telemetry_.note_report(*report, Clock::now());
  }
  const std::lock_guard lock(mutex_);
  last_progress_ = Clock::now();
  return true;
}

void Cell::note_event(TokenEvent& event) {
  using std::chrono::microseconds;
  const auto it = live_.find(event.id);
  CHECK(it != live_.end(), "id={}", event.id);
  if (const auto planned = std::exchange(it->second, std::nullopt)) {
    const auto age = std::chrono::duration_cast<microseconds>(Clock::now() - *planned).count();
    event.since_scheduled_us = static_cast<std::uint32_t>(
        std::clamp<std::int64_t>(age, 0, std::numeric_limits<std::uint32_t>::max()));
  }
  if (event.finish != FinishReason::kNone) live_.erase(it);
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

// What submit() accepted gets an end, taken up or not; it accepts nothing more.
void Cell::end_all(const std::string& sentence) {
  std::vector<Message> mail;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    mail.swap(mailbox_);
  }
  for (const Message& message : mail) {
    if (const auto* request = std::get_if<SequenceRequest>(&message))
      live_.try_emplace(request->id);
  }
  std::vector<TokenEvent> events;
  for (const auto& [id, planned] : live_) {
    events.push_back(ending(id, FinishReason::kCancelled, sentence));
  }
  live_.clear();
  if (!events.empty()) callbacks_.on_tokens(std::move(events));
}

}  // namespace millrace
