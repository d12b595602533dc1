#include "net/status_service.h"

#include <algorithm>

#include "monitoring/catalogue.h"
#include "net/status_cell.h"

namespace millrace::net {

namespace {

using Counts = std::vector<std::uint64_t>;

Counts grown(const Counts& before, const Counts& now) {
  Counts more = now;
  for (std::size_t i = 0; i < std::min(more.size(), before.size()); ++i) more[i] -= before[i];
  return more;
}

// Counters are doubles that hold whole numbers.
std::uint64_t whole(double value) { return static_cast<std::uint64_t>(value); }

Json quantiles(Metric metric, const Counts& before, const Counts& now) {
  const Counts counts = grown(before, now);
  std::uint64_t total = 0;
  for (const std::uint64_t n : counts) total += n;
  Json out;
  out["count"] = total;
  for (const auto& [name, q] : {std::pair("p50_ms", 0.5), {"p90_ms", 0.9}, {"p99_ms", 0.99}}) {
    const auto value = bucket_quantile(describe(metric).buckets, counts, q);
    out[name] = value ? Json(rounded(*value * 1000)) : Json(nullptr);
  }
  return out;
}

}  // namespace

ServiceSample sample_of(const GatewayMetrics& m, std::chrono::steady_clock::time_point now) {
  ServiceSample s;
  s.at = now;
  s.generated_tokens = m.generation_tokens.value();
  s.prompt_tokens = m.prompt_tokens.value();
  s.finished = m.ended_stop.value() + m.ended_length.value();
  s.failed = m.ended_error.value();
  s.rejected = m.rejected_queue_full.value() + m.rejected_token_budget.value() +
               m.rejected_no_cell.value() + m.rejected_draining.value();
  s.first_token = m.first_token.counts();
  s.inter_token = m.inter_token.counts();
  s.latency = m.latency.counts();
  s.queue_time = m.queue_time.counts();
  return s;
}

Json rates_of(const StatusWindow<ServiceSample>& samples) {
  const ServiceSample& now = samples.latest();
  const ServiceSample& before = samples.since(kStatusRateSpan);
  const double seconds = seconds_between(before.at, now.at);
  const auto rate = [&](double from, double to) {
    return seconds > 0 ? Json(rounded((to - from) / seconds)) : Json(nullptr);
  };
  Json out;
  out["window_s"] = rounded(seconds);
  out["generated_tokens_per_s"] = rate(before.generated_tokens, now.generated_tokens);
  out["prompt_tokens_per_s"] = rate(before.prompt_tokens, now.prompt_tokens);
  out["finished_per_s"] = rate(before.finished, now.finished);
  return out;
}

Json latency_of(const StatusWindow<ServiceSample>& samples) {
  const ServiceSample& now = samples.latest();
  const ServiceSample& before = samples.since(kStatusLatencySpan);
  Json out;
  out["window_s"] = rounded(seconds_between(before.at, now.at));
  out["ttft"] = quantiles(Metric::kTimeToFirstToken, before.first_token, now.first_token);
  out["itl"] = quantiles(Metric::kInterTokenLatency, before.inter_token, now.inter_token);
  out["e2e"] = quantiles(Metric::kRequestLatency, before.latency, now.latency);
  out["queue"] = quantiles(Metric::kQueueTime, before.queue_time, now.queue_time);
  return out;
}

Json errors_of(const StatusWindow<ServiceSample>& samples, const GatewayMetrics& m) {
  const ServiceSample& now = samples.latest();
  const ServiceSample& before = samples.since(kStatusLatencySpan);
  Json out;
  out["window_s"] = rounded(seconds_between(before.at, now.at));
  out["failed"] = whole(now.failed - before.failed);
  out["rejected"] = whole(now.rejected - before.rejected);
  Json& failed = out["failed_total"];
  failed["cell_lost"] = whole(m.failed_cell_lost.value());
  failed["cell_error"] = whole(m.failed_cell_error.value());
  failed["protocol"] = whole(m.failed_protocol.value());
  failed["queue_timeout"] = whole(m.failed_queue_timeout.value());
  failed["slow_consumer"] = whole(m.failed_slow_consumer.value());
  failed["shutdown"] = whole(m.failed_shutdown.value());
  Json& rejected = out["rejected_total"];
  rejected["queue_full"] = whole(m.rejected_queue_full.value());
  rejected["token_budget"] = whole(m.rejected_token_budget.value());
  rejected["no_cell"] = whole(m.rejected_no_cell.value());
  rejected["draining"] = whole(m.rejected_draining.value());
  return out;
}

Json totals_of(const GatewayMetrics& m) {
  Json out;
  out["stop"] = whole(m.ended_stop.value());
  out["length"] = whole(m.ended_length.value());
  out["abort"] = whole(m.ended_abort.value());
  out["error"] = whole(m.ended_error.value());
  out["prompt_tokens"] = whole(m.prompt_tokens.value());
  out["generated_tokens"] = whole(m.generation_tokens.value());
  out["preemptions"] = whole(m.preemptions.value());
  return out;
}

Json history_of(const StatusWindow<ServiceSample>& samples) {
  Json out;
  out["step_s"] = 1;
  Json& tokens = out["generated_tokens_per_s"] = Json::array();
  Json running = Json::array();
  Json waiting = Json::array();
  const auto& all = samples.samples();
  for (std::size_t i = 1; i < all.size(); ++i) {
    const double seconds = seconds_between(all[i - 1].at, all[i].at);
    const double more = all[i].generated_tokens - all[i - 1].generated_tokens;
    tokens.push_back(seconds > 0 ? rounded(more / seconds) : 0);
    running.push_back(all[i].running);
    waiting.push_back(all[i].waiting);
  }
  out["running"] = std::move(running);
  out["waiting"] = std::move(waiting);
  return out;
}

}  // namespace millrace::net
