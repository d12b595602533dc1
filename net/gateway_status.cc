// GatewayCore: what the status page shows. Sampled and written once a second,
// whoever looks: any number of viewers costs copies of one text.
#include <algorithm>
#include <chrono>
#include <utility>

#include "net/gateway_core.h"

namespace millrace::net {

namespace {

constexpr std::chrono::seconds kSampleInterval{1};
constexpr std::chrono::minutes kShowGoneCells{10};

double unix_seconds() {
  return rounded(
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count());
}

}  // namespace

void GatewayCore::refresh_status(Clock::time_point now) {
  if (now < next_status_) return;
  // Whole seconds stay whole seconds as long as the strand keeps up.
  next_status_ = std::max(next_status_, now - kSampleInterval) + kSampleInterval;
  ServiceSample sample = sample_of(metrics_, now);
  sample.running = running_;
  sample.waiting = static_cast<std::uint32_t>(queued_sequences_ + waiting_in_cells_);
  status_samples_.add(std::move(sample));
  auto text = std::make_shared<const std::string>(
      status_json(now).dump(-1, ' ', false, Json::error_handler_t::replace));
  const std::lock_guard lock(status_mutex_);
  status_text_ = std::move(text);
}

std::shared_ptr<const std::string> GatewayCore::status_text() const {
  const std::lock_guard lock(status_mutex_);
  return status_text_;
}

Json GatewayCore::status_json(Clock::time_point now) const {
  const EngineStatus s = status();
  Json out;
  out["format"] = kStatusFormat;
  out["time_unix_s"] = unix_seconds();
  Json& service = out["service"];
  service["model"] = config_.model_name;
  service["version"] = config_.version;
  service["uptime_s"] = rounded(seconds_between(started_, now));
  service["ready"] = s.ready;
  service["reason"] = s.reason;
  service["draining"] = draining_.load();
  service["max_context_tokens"] = s.max_context;
  Json& queue = out["queue"];
  queue["waiting"] = queued_sequences_.load();
  queue["waiting_limit"] = config_.max_queued_sequences;
  queue["prompt_tokens"] = queued_tokens_.load();
  queue["prompt_tokens_limit"] = config_.max_queued_tokens;
  queue["timeout_s"] = rounded(std::chrono::duration<double>(config_.queue_timeout).count());
  queue["retry_after_s"] = retry_after_s_.load();
  Json cells = Json::array();
  std::uint64_t kv = 0;
  std::uint64_t kv_used = 0;
  for (const CellView& view : links_.cells()) {
    kv += view.info.kv_tokens;
    kv_used += view.status.kv_tokens_used;
    cells.push_back(cell_status(view, now));
  }
  for (const auto& [id, cell] : cells_) {
    if (cell.connected || now - cell.left > kShowGoneCells) continue;
    CellView view = cell.view;
    view.state = CellState::kGone;
    view.heartbeat_age = std::chrono::duration_cast<std::chrono::milliseconds>(now - cell.left);
    view.progress_age = std::chrono::milliseconds(0);
    view.status.running = view.status.waiting = 0;
    view.status.kv_tokens_used = view.status.kv_tokens_cached = 0;
    cells.push_back(cell_status(view, now));
  }
  Json& load = out["load"];
  load["running"] = running_.load();
  load["waiting_in_cells"] = waiting_in_cells_.load();
  load["kv_tokens_used"] = kv_used;
  load["kv_tokens"] = kv;
  out["rates"] = rates_of(status_samples_);
  out["latency"] = latency_of(status_samples_);
  out["errors"] = errors_of(status_samples_, metrics_);
  out["totals"] = totals_of(metrics_);
  out["history"] = history_of(status_samples_);
  out["cells"] = std::move(cells);
  return out;
}

Json GatewayCore::cell_status(const CellView& view, Clock::time_point now) const {
  static const StatusWindow<CellSample> none(kStatusRateSpan, 1);
  const auto it = cells_.find(view.info.cell_id);
  if (it == cells_.end()) return status_of_cell({.view = view, .samples = none, .now = now});
  const Cell& cell = it->second;
  return status_of_cell({.view = view,
                         .samples = cell.samples,
                         .restarts = static_cast<std::uint64_t>(cell.restarts.value()),
                         .losses = static_cast<std::uint64_t>(cell.losses.value()),
                         .now = now});
}

}  // namespace millrace::net
