// GatewayCore: what cells measure of themselves becomes metrics.
//
// Cells count from their start, metrics from the gateway's: what has grown since the last report is
// added. Handles are looked up each time; a report comes once a second.
#include <algorithm>

#include "net/gateway_core.h"

namespace millrace::net {

namespace {

constexpr double kNanoseconds = 1e-9;

double grown(std::uint64_t before, std::uint64_t now) {
  return now > before ? static_cast<double>(now - before) : 0.0;
}

void add(const Histogram& histogram, const BucketCounts& before, const BucketCounts& now) {
  std::vector<std::uint64_t> more = now.counts;
  for (std::size_t i = 0; i < std::min(more.size(), before.counts.size()); ++i) {
    more[i] -= std::min(more[i], before.counts[i]);
  }
  histogram.add(more, now.sum - before.sum);
}

// The entry of `before` for the same worker, or one of zeros.
CellTelemetry::Worker same_worker(const CellTelemetry& before, const CellTelemetry::Worker& w) {
  for (const CellTelemetry::Worker& b : before.workers) {
    if (b.stage == w.stage && b.lane == w.lane) return b;
  }
  return {};
}

// Reports list the same layers and lanes in the same order, once all workers have reported.
std::uint64_t rows_before(const CellTelemetry& before, std::size_t index,
                          const CellTelemetry::ExpertLoad& load) {
  const auto is_same = [&](const CellTelemetry::ExpertLoad& b) {
    return b.layer == load.layer && b.lane == load.lane;
  };
  if (index < before.expert_load.size() && is_same(before.expert_load[index])) {
    return before.expert_load[index].rows;
  }
  const auto it = std::ranges::find_if(before.expert_load, is_same);
  return it == before.expert_load.end() ? 0 : it->rows;
}

}  // namespace

void GatewayCore::on_telemetry(const Assignment& from, const CellTelemetry& now) {
  const auto it = cells_.find(from.cell_id);
  if (metrics_.exporter == nullptr || it == cells_.end() || it->second.at != from) return;
  Exporter& e = *metrics_.exporter;
  const std::string& cell = from.cell_id;
  CellTelemetry& before = it->second.telemetry;
  it->second.samples.add({Clock::now(), it->second.view.status, now});

  for (const auto& phase : now.start_phases) {
    e.gauge<Metric::kStartPhase>(cell, phase.name).set(static_cast<double>(phase.seconds));
  }
  e.counter<Metric::kCellBusy>(cell).add(grown(before.busy_ns, now.busy_ns) * kNanoseconds);
  e.gauge<Metric::kPipelineBubble>(cell).set(static_cast<double>(now.pipeline_bubble));
  add(e.histogram<Metric::kStepTime>(cell), before.step_seconds, now.step_seconds);
  add(e.histogram<Metric::kIterationTokens>(), before.step_tokens, now.step_tokens);
  for (const CellTelemetry::Worker& w : now.workers) {
    const CellTelemetry::Worker b = same_worker(before, w);
    const std::string stage = std::to_string(w.stage);
    const std::string lane = std::to_string(w.lane);
    e.counter<Metric::kWorkerStepTime>(cell, stage, lane)
        .add(grown(b.step_ns, w.step_ns) * kNanoseconds);
    e.counter<Metric::kWorkerExchangeTime>(cell, stage, lane)
        .add(grown(b.exchange_ns, w.exchange_ns) * kNanoseconds);
    e.counter<Metric::kWorkerPipelineWait>(cell, stage, lane)
        .add(grown(b.pipeline_wait_ns, w.pipeline_wait_ns) * kNanoseconds);
  }
  for (std::size_t i = 0; i < now.expert_load.size(); ++i) {
    const CellTelemetry::ExpertLoad& load = now.expert_load[i];
    e.counter<Metric::kExpertRows>(cell, std::to_string(load.layer), std::to_string(load.lane))
        .add(grown(rows_before(before, i, load), load.rows));
  }
  for (const CellTelemetry::Imbalance& layer : now.imbalance) {
    const std::string number = std::to_string(layer.layer);
    e.gauge<Metric::kExpertImbalance>(cell, number).set(static_cast<double>(layer.experts));
    e.gauge<Metric::kLaneImbalance>(cell, number).set(static_cast<double>(layer.lanes));
  }
  before = now;
}

}  // namespace millrace::net
