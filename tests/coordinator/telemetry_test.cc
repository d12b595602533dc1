#include "coordinator/telemetry.h"

#include <gtest/gtest.h>

#include "monitoring/catalogue.h"

namespace millrace {
namespace {

using namespace std::chrono_literals;

// Stage 1 of 2 has two MoE layers, 7 and 8, and two expert slots a lane.
WorkerReport report(std::uint32_t stage, std::uint32_t lane, std::vector<std::uint64_t> rows,
                    std::uint64_t step_ms, std::uint64_t wait_ms) {
  WorkerReport r;
  r.stage = stage;
  r.lane = lane;
  r.step_ns = step_ms * 1'000'000;
  r.pipeline_wait_ns = wait_ms * 1'000'000;
  r.exchange_ns = 5;
  if (rows.empty()) return r;
  r.first_moe_layer = 7;
  r.moe_layers = 2;
  r.expert_rows = std::move(rows);
  return r;
}

TEST(Telemetry, StepsAreSortedIntoTheCataloguesBuckets) {
  Telemetry t;
  const auto start = Telemetry::Clock::now();
  t.note_sent(start);
  t.note_sent(start + 2ms);  // overlaps
  t.note_finished(start, start + 4ms, 9);
  t.note_finished(start + 2ms, start + 10ms, 1);
  t.note_sent(start + 50ms);
  t.note_finished(start + 50ms, start + 60s, 100'000);
  const CellTelemetry s = t.snapshot();
  EXPECT_EQ(s.busy_ns, 10'000'000U + 59'950'000'000U);
  const auto bounds = describe(Metric::kStepTime).buckets;
  ASSERT_EQ(s.step_seconds.counts.size(), bounds.size() + 1);
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    // 4 ms falls into (3, 5], 8 ms into (7.5, 10].
    EXPECT_EQ(s.step_seconds.counts[i], bounds[i] == .005 || bounds[i] == .01 ? 1U : 0U) << i;
  }
  EXPECT_EQ(s.step_seconds.counts.back(), 1U);
  EXPECT_NEAR(s.step_seconds.sum, 0.004 + 0.008 + 59.95, 1e-9);
  EXPECT_EQ(s.step_tokens.counts.front(), 1U);
  EXPECT_EQ(s.step_tokens.counts[2], 1U);  // 9 is in (8, 16]
  EXPECT_EQ(s.step_tokens.counts.back(), 1U);
}

TEST(Telemetry, LoadAndImbalanceOfAWindow) {
  Telemetry t;
  const auto start = Telemetry::Clock::now();
  const auto later = start + Telemetry::kWindow + 1s;
  t.note_report(report(1, 0, {10, 30, 1, 1}, 1, 0), start);
  t.note_report(report(1, 1, {20, 20, 1, 1}, 1, 0), start);
  EXPECT_TRUE(t.snapshot().imbalance.empty());  // the window is open still
  t.note_report(report(1, 0, {10, 30, 1, 1}, 2, 0), later);
  const CellTelemetry s = t.snapshot();
  ASSERT_EQ(s.imbalance.size(), 2U);
  EXPECT_EQ(s.imbalance[0].layer, 7U);
  EXPECT_FLOAT_EQ(s.imbalance[0].experts, 1.5F);  // 30 of 10, 30, 20, 20
  EXPECT_FLOAT_EQ(s.imbalance[0].lanes, 1.0F);
  EXPECT_FLOAT_EQ(s.imbalance[1].experts, 1.0F);
  ASSERT_EQ(s.expert_load.size(), 4U);
  EXPECT_EQ(s.expert_load[0], (CellTelemetry::ExpertLoad{7, 0, 40}));
  EXPECT_EQ(s.expert_load[1], (CellTelemetry::ExpertLoad{8, 0, 2}));
  EXPECT_EQ(s.expert_load[2], (CellTelemetry::ExpertLoad{7, 1, 40}));
  ASSERT_EQ(s.workers.size(), 2U);
  EXPECT_EQ(s.workers[1].first_moe_layer, 7U);
  EXPECT_EQ(s.workers[1].moe_layers, 2U);
  // The next window: layer 7 gets all its rows on lane 1's first expert, layer 8 none.
  t.note_report(report(1, 1, {120, 20, 1, 1}, 2, 0), later + Telemetry::kWindow);
  const CellTelemetry next = t.snapshot();
  EXPECT_FLOAT_EQ(next.imbalance[0].experts, 4.0F);
  EXPECT_FLOAT_EQ(next.imbalance[0].lanes, 2.0F);
  EXPECT_FLOAT_EQ(next.imbalance[1].experts, 1.0F);  // as before
}

TEST(Telemetry, TheBubbleIsTheShareOfBusyTimeWithoutWork) {
  Telemetry t;
  const auto start = Telemetry::Clock::now();
  t.note_sent(start);
  t.note_finished(start, start + 1000ms, 1);
  t.note_report(report(0, 0, {}, 500, 0), start + 1s);
  t.note_report(report(1, 0, {}, 900, 600), start + Telemetry::kWindow + 1s);
  const CellTelemetry s = t.snapshot();
  // Two workers had 1 s each; they worked for 0.5 s and 0.3 s.
  EXPECT_NEAR(s.pipeline_bubble, 0.6, 1e-6);
  ASSERT_EQ(s.workers.size(), 2U);
  EXPECT_EQ(s.workers[1].pipeline_wait_ns, 600'000'000U);
  EXPECT_EQ(s.workers[0].exchange_ns, 5U);
  EXPECT_TRUE(s.expert_load.empty());
}

// A pipeline has always a plan under way; its busy time must not wait for an end that never comes.
TEST(Telemetry, WhatIsUnderWayCountsAtEachReport) {
  Telemetry t;
  const auto start = Telemetry::Clock::now();
  t.note_sent(start);
  t.note_sent(start + 100ms);
  t.note_finished(start, start + 200ms, 1);
  EXPECT_EQ(t.snapshot().busy_ns, 0U);
  t.note_report(report(1, 0, {1, 1, 1, 1}, 1, 0), start + 300ms);
  EXPECT_EQ(t.snapshot().busy_ns, 300'000'000U);
  t.note_finished(start + 100ms, start + 400ms, 1);
  EXPECT_EQ(t.snapshot().busy_ns, 400'000'000U);
  t.note_report(report(1, 0, {1, 1, 1, 1}, 1, 0), start + 900ms);
  EXPECT_EQ(t.snapshot().busy_ns, 400'000'000U);  // nothing has been under way since
}

TEST(Telemetry, StartPhasesKeepTheirOrder) {
  Telemetry t;
  t.note_start_phase("plan", 250ms);
  t.note_start_phase("load", 2s);
  const CellTelemetry s = t.snapshot();
  ASSERT_EQ(s.start_phases.size(), 2U);
  EXPECT_EQ(s.start_phases[0], (CellTelemetry::StartPhase{"plan", 0.25F}));
  EXPECT_EQ(s.start_phases[1], (CellTelemetry::StartPhase{"load", 2.0F}));
}

}  // namespace
}  // namespace millrace
