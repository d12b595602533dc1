// The cell's measurements as bytes: a part of net/codec.h.
#include "config/wire.h"
#include "monitoring/catalogue.h"
#include "net/codec.h"

namespace millrace::net {
namespace {

constexpr std::size_t kPhaseBytes = 4 + 4;
constexpr std::size_t kWorkerBytes = 4 + 4 + 3 * 8 + 4 + 4;
constexpr std::size_t kLoadBytes = 4 + 4 + 8;
constexpr std::size_t kImbalanceBytes = 4 + 4 + 4;

void write(WireWriter& w, const BucketCounts& b) {
  w.count(b.counts.size());
  for (const std::uint64_t n : b.counts) w.u64(n);
  w.f64(b.sum);
}

// Counts for other bounds than this build's could not be exported.
void read(WireReader& r, const char* field, Metric metric, BucketCounts& b) {
  b.counts.resize(r.count(field, sizeof(std::uint64_t)));
  for (std::uint64_t& n : b.counts) n = r.u64(field);
  if (b.counts.size() != describe(metric).buckets.size() + 1) {
    r.fail(field, "must have a count for each bucket of the catalogue and one above");
  }
  b.sum = r.finite_f64(field);
}

}  // namespace

void encode(const CellTelemetry& v, Bytes& out) {
  WireWriter w(out);
  w.count(v.start_phases.size());
  for (const auto& phase : v.start_phases) {
    w.string(phase.name);
    w.f32(phase.seconds);
  }
  w.u64(v.busy_ns);
  w.f32(v.pipeline_bubble);
  write(w, v.step_seconds);
  write(w, v.step_tokens);
  w.count(v.workers.size());
  for (const auto& worker : v.workers) {
    w.u32(worker.stage);
    w.u32(worker.lane);
    w.u64(worker.step_ns);
    w.u64(worker.exchange_ns);
    w.u64(worker.pipeline_wait_ns);
    w.u32(worker.first_moe_layer);
    w.u32(worker.moe_layers);
  }
  w.count(v.expert_load.size());
  for (const auto& load : v.expert_load) {
    w.u32(load.layer);
    w.u32(load.lane);
    w.u64(load.rows);
  }
  w.count(v.imbalance.size());
  for (const auto& layer : v.imbalance) {
    w.u32(layer.layer);
    w.f32(layer.experts);
    w.f32(layer.lanes);
  }
}

Result<void> decode(ByteView in, CellTelemetry& out) {
  WireReader r(in);
  out.start_phases.resize(r.count("start_phases", kPhaseBytes));
  for (auto& phase : out.start_phases) {
    r.string("start_phases.name", phase.name);
    phase.seconds = r.finite_f32("start_phases.seconds");
  }
  out.busy_ns = r.u64("busy_ns");
  out.pipeline_bubble = r.finite_f32("pipeline_bubble");
  read(r, "step_seconds", Metric::kStepTime, out.step_seconds);
  read(r, "step_tokens", Metric::kIterationTokens, out.step_tokens);
  out.workers.resize(r.count("workers", kWorkerBytes));
  for (auto& worker : out.workers) {
    worker.stage = r.u32("workers.stage");
    worker.lane = r.u32("workers.lane");
    worker.step_ns = r.u64("workers.step_ns");
    worker.exchange_ns = r.u64("workers.exchange_ns");
    worker.pipeline_wait_ns = r.u64("workers.pipeline_wait_ns");
    worker.first_moe_layer = r.u32("workers.first_moe_layer");
    worker.moe_layers = r.u32("workers.moe_layers");
  }
  out.expert_load.resize(r.count("expert_load", kLoadBytes));
  for (auto& load : out.expert_load) {
    load.layer = r.u32("expert_load.layer");
    load.lane = r.u32("expert_load.lane");
    load.rows = r.u64("expert_load.rows");
  }
  out.imbalance.resize(r.count("imbalance", kImbalanceBytes));
  for (auto& layer : out.imbalance) {
    layer.layer = r.u32("imbalance.layer");
    layer.experts = r.finite_f32("imbalance.experts");
    layer.lanes = r.finite_f32("imbalance.lanes");
  }
  return r.finish("Telemetry");
}

}  // namespace millrace::net
