// GatewayCore: cells coming and going, readiness, figures.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "net/gateway_core.h"

namespace millrace::net {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kRememberedCells = 1024;
constexpr double kRateSeconds = 10;  // time constant of the drain rate
constexpr std::uint32_t kRestartSeconds =
    5;  // advice while no cell is ready: about a cell's restart
constexpr std::uint32_t kMaxRetrySeconds = 60;

}  // namespace

void GatewayCore::on_cell_joined(const CellInfo& info) {
  forget_old_cells();
  Cell& cell = cells_[info.cell_id];
  take_cell_metrics(cell, info);
  if (cell.at.epoch != info.epoch) {
    if (cell.at.epoch != 0) cell.restarts.add();
    cell.view.status = {};  // a new process counts from zero
    cell.telemetry = {};
    cell.samples.clear();
  }
  cell.at = {info.cell_id, info.epoch};
  cell.view.info = info;
  cell.view.state = CellState::kJoining;
  cell.connected = true;
  cell.said_goodbye = false;
  cell.heard = Clock::now();
  cell.assigned = cell.suspects = 0;
  cell.paused = false;
  cell.view.heartbeats = 0;
}

void GatewayCore::take_cell_metrics(Cell& cell, const CellInfo& info) {
  if (metrics_.exporter == nullptr) return;
  Exporter& e = *metrics_.exporter;
  const std::string& id = info.cell_id;
  cell.info.set(0);  // of another start, perhaps with another transport
  cell.info = e.gauge<Metric::kCellInfo>(id, info.backend, info.transport);
  cell.steps = e.counter<Metric::kCellSteps>(id);
  cell.restarts = e.counter<Metric::kCellRestarts>(id);
  cell.losses = e.counter<Metric::kCellLosses>(id);
  cell.heartbeat_age = e.gauge<Metric::kCellHeartbeatAge>(id);
  cell.workers = e.gauge<Metric::kCellWorkers>(id);
  cell.slots = e.gauge<Metric::kCellSlots>(id);
  cell.slots_used = e.gauge<Metric::kCellSlotsUsed>(id);
  cell.waiting = e.gauge<Metric::kCellWaiting>(id);
  cell.kv_tokens = e.gauge<Metric::kCellKvTokens>(id);
  cell.kv_tokens_used = e.gauge<Metric::kCellKvTokensUsed>(id);
  cell.kv_tokens_cached = e.gauge<Metric::kCellKvTokensCached>(id);
  e.gauge<Metric::kCellEpoch>(id).set(static_cast<double>(info.epoch));
  const std::uint64_t blocks = info.block_tokens == 0 ? 0 : info.kv_tokens / info.block_tokens;
  e.gauge<Metric::kCacheConfigInfo>(std::to_string(info.block_tokens), std::to_string(blocks),
                                    info.kv_dtype)
      .set(1);
}

void GatewayCore::on_cell_changed(const CellView& view) {
  const auto it = cells_.find(view.info.cell_id);
  if (it == cells_.end() || it->second.at.epoch != view.info.epoch) return;
  Cell& cell = it->second;
  const auto grown = [](std::uint64_t before, std::uint64_t after) {
    return after > before ? static_cast<double>(after - before) : 0.0;
  };
  // A session's first view has no heartbeat yet; what was reported before stays the base.
  if (view.state != CellState::kJoining && view.state != CellState::kGone) {
    cell.steps.add(grown(cell.view.status.steps, view.status.steps));
    metrics_.preemptions.add(grown(cell.view.status.preemptions, view.status.preemptions));
    metrics_.recomputed_tokens.add(
        grown(cell.view.status.recomputed_tokens, view.status.recomputed_tokens));
    metrics_.prefix_queries.add(
        grown(cell.view.status.prefix_queried_tokens, view.status.prefix_queried_tokens));
    metrics_.prefix_hits.add(
        grown(cell.view.status.prefix_hit_tokens, view.status.prefix_hit_tokens));
    metrics_.prefix_rebuilt.add(
        grown(cell.view.status.prefix_rebuilt_tokens, view.status.prefix_rebuilt_tokens));
    metrics_.corrupted_requests.add(
        grown(cell.view.status.corrupted_sequences, view.status.corrupted_sequences));
    if (view.heartbeats != cell.view.heartbeats) cell.paused = false;
    cell.view = view;
  } else {
    cell.view.state = view.state;
    cell.view.reason = view.reason;
  }
  refresh();
  pump();
}

void GatewayCore::on_cell_gone(const Assignment& at, const std::string& reason, bool expected) {
  const auto it = cells_.find(at.cell_id);
  if (it != cells_.end() && it->second.at == at) {
    it->second.connected = false;
    it->second.said_goodbye = expected;
    it->second.left = Clock::now();
    it->second.view.reason = reason;
    if (!expected) it->second.losses.add();
  }
  std::vector<RequestId> lost;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.in_cell && journal_.find(id)->at == at) lost.push_back(id);
  }
  replay(std::move(lost), Unfinished::kLost,
         fmt::format("cell {} is lost: {}", at.cell_id, reason));
  for (const auto& stream : touched_) stream->wake();
  touched_.clear();
  refresh();
  pump();
}

// Bounds what is remembered of cells that will not come back.
void GatewayCore::forget_old_cells() {
  if (cells_.size() < kRememberedCells) return;
  const auto gone = std::ranges::find_if(cells_, [](const auto& c) { return !c.second.connected; });
  if (gone != cells_.end()) cells_.erase(gone);
}

// Readiness (contract C4) and the figures of status(), from what is known now.
void GatewayCore::refresh() {
  std::uint32_t context = 0;
  std::uint32_t running = 0;
  std::uint32_t waiting = 0;
  std::uint32_t healthy = 0;
  std::string reason = "no cell is connected";
  for (const auto& [id, cell] : cells_) {
    if (!cell.connected) continue;
    const CellView& v = cell.view;
    context = context == 0 ? v.info.max_context : std::min(context, v.info.max_context);
    const std::uint32_t in_line = std::min(v.status.waiting, cell.assigned);
    waiting += in_line;
    running += cell.assigned - in_line;
    if (v.state == CellState::kHealthy) ++healthy;
    if (v.state != CellState::kHealthy) reason = fmt::format("cell {}: {}", id, v.reason);
  }
  const bool draining = draining_;
  ready_ = healthy > 0 && !draining;
  max_context_ = context;
  running_ = running;
  waiting_in_cells_ = waiting;
  metrics_.ready.set(ready_ ? 1 : 0);
  metrics_.cells_ready.set(healthy);
  metrics_.draining.set(draining ? 1 : 0);
  if (draining) reason = "draining";
  const std::lock_guard lock(reason_mutex_);
  reason_ = ready_ ? "" : std::move(reason);
}

EngineStatus GatewayCore::status() const {
  EngineStatus s;
  s.ready = ready_ && !draining_;
  s.queued = static_cast<std::uint32_t>(queued_sequences_ + waiting_in_cells_);
  s.running = running_;
  s.max_context = max_context_;
  if (s.ready) return s;
  if (draining_) {
    s.reason = "draining";
    return s;
  }
  const std::lock_guard lock(reason_mutex_);
  s.reason = reason_;
  return s;
}

asio::awaitable<void> GatewayCore::tick_loop() {
  using std::chrono::milliseconds;
  const auto self = shared_from_this();
  const milliseconds period =
      std::clamp(config_.queue_timeout / 4, milliseconds(5), milliseconds(250));
  Clock::time_point last = Clock::now();
  while (!stopped_) {
    boost::system::error_code ec;
    tick_timer_.expires_after(period);
    co_await tick_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    if (stopped_) co_return;
    const Clock::time_point now = Clock::now();
    expire_queue(now);
    measure_drain_rate(now - last);
    refresh();
    refresh_metrics();
    refresh_status(now);
    last = now;
  }
}

void GatewayCore::measure_drain_rate(Clock::duration elapsed) {
  const double dt = std::chrono::duration<double>(elapsed).count();
  const double keep = std::exp(-dt / kRateSeconds);
  const auto finished = static_cast<double>(std::exchange(finished_since_tick_, 0));
  drain_rate_ = drain_rate_ * keep + finished / dt * (1 - keep);
  std::uint32_t advice = 1;
  const auto queued = static_cast<double>(queued_sequences_.load());
  if (!ready_) {
    advice = kRestartSeconds;
  } else if (queued > 0) {
    const double wait = (queued + 1) / std::max(drain_rate_, 1e-6);
    advice = static_cast<std::uint32_t>(std::clamp(std::ceil(wait), 1.0, double{kMaxRetrySeconds}));
  }
  retry_after_s_ = advice;
}

void GatewayCore::refresh_metrics() {
  if (metrics_.exporter == nullptr) return;
  const Clock::time_point now = Clock::now();
  std::uint32_t states[5] = {};
  std::uint64_t kv = 0;
  std::uint64_t kv_used = 0;
  for (const CellView& v : links_.cells()) {
    ++states[static_cast<std::size_t>(v.state)];
    kv += v.info.kv_tokens;
    kv_used += v.status.kv_tokens_used;
    cells_.at(v.info.cell_id).heard = now - v.heartbeat_age;
  }
  refresh_cell_metrics(now);
  metrics_.cells_joining.set(states[static_cast<std::size_t>(CellState::kJoining)]);
  metrics_.cells_healthy.set(states[static_cast<std::size_t>(CellState::kHealthy)]);
  metrics_.cells_suspect.set(states[static_cast<std::size_t>(CellState::kSuspect)]);
  metrics_.cells_draining.set(states[static_cast<std::size_t>(CellState::kDraining)]);
  metrics_.kv_usage.set(kv == 0 ? 0 : static_cast<double>(kv_used) / static_cast<double>(kv));
  metrics_.queue_capacity.set(config_.max_queued_sequences);
  metrics_.running.set(running_);
  metrics_.waiting.set(static_cast<double>(queued_sequences_ + waiting_in_cells_));
  metrics_.queued_sequences.set(static_cast<double>(queued_sequences_));
  metrics_.queued_tokens.set(static_cast<double>(queued_tokens_));
  const auto add = [](const Counter& c, std::uint64_t& reported, std::uint64_t total) {
    c.add(static_cast<double>(total - std::exchange(reported, total)));
  };
  const JournalStats& j = journal_.stats();
  add(metrics_.dropped_stale_token, reported_journal_.stale, j.stale);
  add(metrics_.dropped_duplicate, reported_journal_.duplicates, j.duplicates);
  add(metrics_.dropped_unknown, reported_journal_.unknown, j.unknown);
  add(metrics_.dropped_stale_frame, reported_stale_frames_, links_.stats().stale_frames);
}

// A cell that is away has no room; whether it should be there, its heartbeat's age says.
void GatewayCore::refresh_cell_metrics(Clock::time_point now) {
  for (const auto& [id, cell] : cells_) {
    const CellInfo info = cell.connected ? cell.view.info : CellInfo{};
    const CellStatus status = cell.connected ? cell.view.status : CellStatus{};
    cell.info.set(cell.connected ? 1 : 0);
    cell.workers.set(info.stages * info.lanes);
    cell.slots.set(info.max_sequences);
    cell.slots_used.set(status.running);
    cell.waiting.set(status.waiting);
    cell.kv_tokens.set(static_cast<double>(info.kv_tokens));
    cell.kv_tokens_used.set(static_cast<double>(status.kv_tokens_used));
    cell.kv_tokens_cached.set(static_cast<double>(status.kv_tokens_cached));
    cell.heartbeat_age.set(cell.said_goodbye
                               ? std::numeric_limits<double>::quiet_NaN()
                               : std::chrono::duration<double>(now - cell.heard).count());
  }
}

asio::awaitable<GatewayStats> GatewayCore::stats_on_strand() const {
  const auto self = shared_from_this();
  GatewayStats s = stats_;
  s.rejected_queue_full = rejected_queue_full_;
  s.rejected_token_budget = rejected_token_budget_;
  s.rejected_no_cell = rejected_no_cell_;
  s.rejected_draining = rejected_draining_;
  s.journal = journal_.stats();
  s.links = links_.stats();
  co_return s;
}

asio::awaitable<std::vector<CellView>> GatewayCore::cells_on_strand() const {
  const auto self = shared_from_this();
  co_return links_.cells();
}

}  // namespace millrace::net
