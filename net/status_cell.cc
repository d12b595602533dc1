#include "net/status_cell.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace millrace::net {

namespace {

using Place = std::pair<std::uint32_t, std::uint32_t>;

double grown(std::uint64_t before, std::uint64_t now) {
  return now > before ? static_cast<double>(now - before) : 0.0;
}

// Rows by (layer, lane) between two samples.
std::map<Place, double> rows_between(const CellTelemetry& before, const CellTelemetry& now) {
  std::map<Place, double> rows;
  for (const auto& load : now.expert_load) {
    rows[{load.layer, load.lane}] = static_cast<double>(load.rows);
  }
  for (const auto& load : before.expert_load) {
    double& value = rows[{load.layer, load.lane}];
    value = std::max(0.0, value - static_cast<double>(load.rows));
  }
  return rows;
}

const CellTelemetry::Worker* find_worker(const CellTelemetry& in, const CellTelemetry::Worker& w) {
  const auto it = std::ranges::find_if(in.workers, [&](const CellTelemetry::Worker& other) {
    return other.stage == w.stage && other.lane == w.lane;
  });
  return it == in.workers.end() ? nullptr : &*it;
}

// Of the rows in layers [first, first + count): this lane's own over the average lane's.
Json load_ratio(const std::map<Place, double>& rows, std::uint32_t first, std::uint32_t count,
                std::uint32_t lane, std::uint32_t lanes) {
  double own = 0;
  double all = 0;
  for (std::uint32_t layer = first; layer < first + count; ++layer) {
    for (std::uint32_t e = 0; e < lanes; ++e) {
      const auto it = rows.find({layer, e});
      if (it == rows.end()) continue;
      all += it->second;
      if (e == lane) own += it->second;
    }
  }
  return all > 0 ? Json(rounded(own * lanes / all)) : Json(nullptr);
}

Json status_of_worker(const CellTelemetry::Worker& now, const CellTelemetry::Worker& before,
                      const std::map<Place, double>& rows, std::uint32_t lanes, double seconds) {
  const auto share = [&](std::uint64_t from, std::uint64_t to) {
    return rounded(std::min(1.0, grown(from, to) * 1e-9 / seconds));
  };
  Json worker;
  worker["stage"] = now.stage;
  worker["lane"] = now.lane;
  worker["busy_ratio"] = share(before.step_ns, now.step_ns);
  worker["exchange_ratio"] = share(before.exchange_ns, now.exchange_ns);
  worker["pipeline_wait_ratio"] = share(before.pipeline_wait_ns, now.pipeline_wait_ns);
  double own = 0;
  Json layers = Json::array();
  const std::uint32_t first = now.first_moe_layer;
  for (std::uint32_t layer = first; layer < first + now.moe_layers; ++layer) {
    if (const auto it = rows.find({layer, now.lane}); it != rows.end()) own += it->second;
    layers.push_back(load_ratio(rows, layer, 1, now.lane, lanes));
  }
  worker["expert_rows_per_s"] = rounded(own / seconds);
  worker["expert_load_ratio"] = load_ratio(rows, first, now.moe_layers, now.lane, lanes);
  worker["first_moe_layer"] = now.moe_layers == 0 ? Json(nullptr) : Json(first);
  worker["layer_load_ratio"] = std::move(layers);
  return worker;
}

// The oldest sample of the span with a report of every worker that the latest has one of: a cell's
// first samples come before its workers' first reports, and all lanes are compared over one time.
const CellSample& reports_before(const StatusWindow<CellSample>& samples) {
  const CellSample& now = samples.latest();
  for (const CellSample& sample : samples.samples()) {
    if (now.at - sample.at > kStatusRateSpan) continue;
    const bool complete =
        std::ranges::all_of(now.telemetry.workers, [&](const CellTelemetry::Worker& w) {
          return find_worker(sample.telemetry, w) != nullptr;
        });
    if (complete) return sample;
  }
  return now;
}

// What two samples say; all null without two recent ones.
void add_rates(const CellFigures& f, Json& cell) {
  for (const char* name : {"steps_per_s", "generated_tokens_per_s", "prompt_tokens_per_s",
                           "busy_ratio", "pipeline_bubble_ratio"}) {
    cell[name] = nullptr;
  }
  cell["workers"] = Json::array();
  cell["imbalance"] = Json::array();
  if (f.samples.empty() || f.now - f.samples.latest().at > kStatusRateSpan) return;
  const CellSample& now = f.samples.latest();
  const CellSample& before = f.samples.since(kStatusRateSpan);
  const double seconds = seconds_between(before.at, now.at);
  cell["pipeline_bubble_ratio"] = rounded(now.telemetry.pipeline_bubble);
  for (const auto& layer : now.telemetry.imbalance) {
    Json entry;
    entry["layer"] = layer.layer;
    entry["experts"] = rounded(layer.experts);
    entry["lanes"] = rounded(layer.lanes);
    cell["imbalance"].push_back(std::move(entry));
  }
  if (seconds <= 0) return;
  const auto rate = [&](std::uint64_t from, std::uint64_t to) {
    return rounded(grown(from, to) / seconds);
  };
  cell["steps_per_s"] = rate(before.status.steps, now.status.steps);
  cell["generated_tokens_per_s"] =
      rate(before.status.generated_tokens, now.status.generated_tokens);
  cell["prompt_tokens_per_s"] = rate(before.status.prompt_tokens, now.status.prompt_tokens);
  cell["busy_ratio"] = rounded(
      std::min(1.0, grown(before.telemetry.busy_ns, now.telemetry.busy_ns) * 1e-9 / seconds));
  const CellSample& first = reports_before(f.samples);
  const double reported = seconds_between(first.at, now.at);
  if (reported <= 0) return;  // one report says nothing of a rate
  const auto rows = rows_between(first.telemetry, now.telemetry);
  for (const CellTelemetry::Worker& w : now.telemetry.workers) {
    const CellTelemetry::Worker* old = find_worker(first.telemetry, w);
    cell["workers"].push_back(status_of_worker(w, *old, rows, f.view.info.lanes, reported));
  }
}

}  // namespace

double rounded(double value) { return std::round(value * 1000) / 1000; }

Json status_of_cell(const CellFigures& f) {
  const CellView& v = f.view;
  const auto in_seconds = [](std::chrono::milliseconds age) {
    return rounded(std::chrono::duration<double>(age).count());
  };
  Json cell;
  cell["id"] = v.info.cell_id;
  cell["state"] = to_string(v.state);
  cell["reason"] = v.reason;
  cell["epoch"] = v.info.epoch;
  cell["restarts"] = f.restarts;
  cell["losses"] = f.losses;
  cell["heartbeat_age_s"] = in_seconds(v.heartbeat_age);
  cell["progress_age_s"] = in_seconds(v.progress_age);
  cell["stages"] = v.info.stages;
  cell["lanes"] = v.info.lanes;
  cell["running"] = v.status.running;
  cell["waiting"] = v.status.waiting;
  cell["max_sequences"] = v.info.max_sequences;
  cell["kv_tokens_used"] = v.status.kv_tokens_used;
  cell["kv_tokens_cached"] = v.status.kv_tokens_cached;
  cell["kv_tokens"] = v.info.kv_tokens;
  cell["kv_dtype"] = v.info.kv_dtype;
  cell["backend"] = v.info.backend;
  cell["transport"] = v.info.transport;
  cell["steps"] = v.status.steps;
  cell["preemptions"] = v.status.preemptions;
  double start = 0;
  if (!f.samples.empty()) {
    for (const auto& phase : f.samples.latest().telemetry.start_phases) {
      start += static_cast<double>(phase.seconds);
    }
  }
  cell["start_s"] = f.samples.empty() ? Json(nullptr) : Json(rounded(start));
  add_rates(f, cell);
  return cell;
}

}  // namespace millrace::net
