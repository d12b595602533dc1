#include "cli/start_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace {
namespace {

using testing::HasSubstr;
using testing::Not;

SupervisorStatus status(CellPhase phase, std::uint64_t epoch, double loaded = 0) {
  SupervisorStatus s;
  s.phase = phase;
  s.epoch = epoch;
  s.loaded = loaded;
  return s;
}

TEST(StartMetrics, FollowAStartThatFailsAndOneThatSucceeds) {
  Exporter exporter({.model_name = "m"});
  StartMetrics metrics(exporter, "a");
  const auto in = [&](std::string_view state) {
    return exporter.gauge<Metric::kCellStartState>("a", state).value();
  };
  const auto loaded = [&] { return exporter.gauge<Metric::kCellLoaded>("a").value(); };
  const auto starts = [&] { return exporter.counter<Metric::kCellStarts>("a").value(); };

  EXPECT_EQ(starts(), 0);
  metrics.update(status(CellPhase::kStarting, 100));
  EXPECT_EQ(in("starting"), 1);
  EXPECT_EQ(starts(), 1);
  metrics.update(status(CellPhase::kLoading, 100, 0.25));
  EXPECT_EQ(in("starting"), 0);
  EXPECT_EQ(in("loading"), 1);
  EXPECT_EQ(loaded(), 0.25);
  metrics.update(status(CellPhase::kBackoff, 100, 0.25));
  EXPECT_EQ(in("backoff"), 1);
  EXPECT_EQ(loaded(), 0) << "what an ended start had loaded is gone";
  EXPECT_EQ(starts(), 1);
  metrics.update(status(CellPhase::kStarting, 101));
  EXPECT_EQ(starts(), 2);
  metrics.update(status(CellPhase::kReady, 101, 0.9));
  EXPECT_EQ(in("ready"), 1);
  EXPECT_EQ(loaded(), 1) << "ready means all, whatever the last report said";
  metrics.update(status(CellPhase::kStopped, 101));
  EXPECT_EQ(in("stopped"), 1);
  EXPECT_EQ(in("ready"), 0);
  EXPECT_EQ(starts(), 2);
}

TEST(StartMetrics, RenderNothingElse) {
  Exporter exporter({.model_name = "m"});
  StartMetrics metrics(exporter, "a");
  metrics.update(status(CellPhase::kLoading, 1, 0.5));
  const std::string text = StartMetrics::render(exporter);
  EXPECT_THAT(text, HasSubstr("millrace_cell_loaded_ratio{cell=\"a\"} 0.5"));
  EXPECT_THAT(text, HasSubstr("millrace_cell_start_state{cell=\"a\",state=\"loading\"} 1"));
  EXPECT_THAT(text, HasSubstr("millrace_cell_starts_total{cell=\"a\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("vllm:")));
  EXPECT_THAT(text, Not(HasSubstr("millrace_ready")));
}

}  // namespace
}  // namespace millrace
