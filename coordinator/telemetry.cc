#include "coordinator/telemetry.h"

#include <algorithm>
#include <span>

#include "config/check.h"
#include "monitoring/catalogue.h"

namespace millrace {

namespace {

std::uint64_t ns_between(Telemetry::Clock::time_point from, Telemetry::Clock::time_point to) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(to - from).count());
}

void observe(BucketCounts& into, Metric metric, double value) {
  const std::span<const double> bounds = describe(metric).buckets;
  into.counts.resize(bounds.size() + 1);
  const auto bucket = std::ranges::lower_bound(bounds, value) - bounds.begin();
  ++into.counts[static_cast<std::size_t>(bucket)];
  into.sum += value;
}

// The largest of `values` over their average; 1 when there is nothing.
float peak_ratio(std::span<const std::uint64_t> values) {
  std::uint64_t sum = 0;
  std::uint64_t most = 0;
  for (const std::uint64_t v : values) {
    sum += v;
    most = std::max(most, v);
  }
  if (sum == 0) return 1;
  return static_cast<float>(static_cast<double>(most) * static_cast<double>(values.size()) /
                            static_cast<double>(sum));
}

}  // namespace

Telemetry::Telemetry() : window_begin_(Clock::now()) {
  data_.step_seconds.counts.resize(describe(Metric::kStepTime).buckets.size() + 1);
  data_.step_tokens.counts.resize(describe(Metric::kIterationTokens).buckets.size() + 1);
}

void Telemetry::note_start_phase(std::string name, std::chrono::duration<float> time) {
  const std::lock_guard lock(mutex_);
  data_.start_phases.push_back({std::move(name), time.count()});
}

void Telemetry::note_sent(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (under_way_++ == 0) busy_since_ = now;
}

void Telemetry::note_finished(Clock::time_point begin, Clock::time_point now,
                              std::uint64_t tokens) {
  const std::lock_guard lock(mutex_);
  CHECK(under_way_ > 0, "a step ends that was never sent");
  if (--under_way_ == 0) data_.busy_ns += ns_between(busy_since_, now);
  observe(data_.step_seconds, Metric::kStepTime,
          std::chrono::duration<double>(now - begin).count());
  observe(data_.step_tokens, Metric::kIterationTokens, static_cast<double>(tokens));
}

void Telemetry::note_report(const WorkerReport& report, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const Place place{report.stage, report.lane};
  latest_[place] = report;
  window_start_.try_emplace(place, WorkerReport{});
  if (under_way_ > 0) {  // what is under way counts up to now: plans may overlap without end
    data_.busy_ns += ns_between(busy_since_, now);
    busy_since_ = now;
  }
  if (now - window_begin_ >= kWindow) close_window(now);
}

void Telemetry::close_window(Clock::time_point now) {
  const std::uint64_t busy = data_.busy_ns - std::exchange(window_busy_ns_, data_.busy_ns);
  double working = 0;
  for (const auto& [place, report] : latest_) {
    const WorkerReport& before = window_start_.at(place);
    working += static_cast<double>(report.step_ns - before.step_ns) -
               static_cast<double>(report.pipeline_wait_ns - before.pipeline_wait_ns);
    if (place.second == 0) close_layers(place.first);
  }
  const double offered = static_cast<double>(busy) * static_cast<double>(latest_.size());
  data_.pipeline_bubble =
      offered > 0 ? static_cast<float>(std::clamp(1.0 - working / offered, 0.0, 1.0)) : 0.0F;
  window_start_ = latest_;
  window_begin_ = now;
}

// The imbalance of the stage's layers in this window; a layer without rows keeps its last one.
void Telemetry::close_layers(std::uint32_t stage) {
  const WorkerReport& first = latest_.at({stage, 0});
  for (std::uint32_t i = 0; i < first.moe_layers; ++i) {
    std::vector<std::uint64_t> experts;
    std::vector<std::uint64_t> lanes;
    for (auto it = latest_.lower_bound({stage, 0}); it != latest_.end(); ++it) {
      const auto& [place, report] = *it;
      if (place.first != stage) break;
      const std::size_t slots = report.expert_rows.size() / std::max(1U, report.moe_layers);
      const std::vector<std::uint64_t>& before = window_start_.at(place).expert_rows;
      lanes.push_back(0);
      for (std::size_t j = i * slots; j < (i + 1) * slots; ++j) {
        experts.push_back(report.expert_rows[j] - (before.empty() ? 0 : before[j]));
        lanes.back() += experts.back();
      }
    }
    if (std::ranges::all_of(lanes, [](std::uint64_t rows) { return rows == 0; })) continue;
    const std::uint32_t layer = first.first_moe_layer + i;
    imbalance_[layer] = {layer, peak_ratio(experts), peak_ratio(lanes)};
  }
}

CellTelemetry Telemetry::snapshot() const {
  const std::lock_guard lock(mutex_);
  CellTelemetry out = data_;
  for (const auto& [place, report] : latest_) {
    out.workers.push_back({report.stage, report.lane, report.step_ns, report.exchange_ns,
                           report.pipeline_wait_ns, report.first_moe_layer, report.moe_layers});
    const std::size_t slots = report.expert_rows.size() / std::max(1U, report.moe_layers);
    for (std::uint32_t i = 0; i < report.moe_layers; ++i) {
      std::uint64_t rows = 0;
      for (std::size_t s = 0; s < slots; ++s) rows += report.expert_rows[i * slots + s];
      out.expert_load.push_back({report.first_moe_layer + i, report.lane, rows});
    }
  }
  for (const auto& [layer, entry] : imbalance_) out.imbalance.push_back(entry);
  return out;
}

}  // namespace millrace
