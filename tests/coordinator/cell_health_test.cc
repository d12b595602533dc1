#include "coordinator/cell_health.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

using namespace std::chrono_literals;

SupervisorStatus good() {
  SupervisorStatus s;
  s.phase = CellPhase::kReady;
  s.ever_ready = true;
  s.beat = {1, 4, 200};
  return s;
}

template <class Change>
SupervisorStatus with(Change change) {
  SupervisorStatus s = good();
  change(s);
  return s;
}

std::string not_ready(const SupervisorStatus& s) { return why_not_ready(s, 1000ms); }

TEST(CellHealth, AWorkingCellIsAllThree) {
  EXPECT_EQ(why_not_started(good()), "");
  EXPECT_EQ(not_ready(good()), "");
  EXPECT_EQ(why_not_live(good()), "");
}

TEST(CellHealth, ReadyIsNotWhileItStarts) {
  SupervisorStatus s;
  EXPECT_EQ(not_ready(s), "the ranks are starting");
  s.phase = CellPhase::kLoading;
  s.loaded = 0.42;
  EXPECT_EQ(not_ready(s), "loading, 42 %");
  EXPECT_EQ(why_not_started(s), "loading, 42 %");
  EXPECT_EQ(why_not_live(s), "");
}

TEST(CellHealth, ReadyNeedsAGatewayProgressAndNoDrain) {
  EXPECT_EQ(not_ready(with([](auto& s) { s.beat.gateways = 0; })), "no gateway is linked");
  EXPECT_EQ(not_ready(with([](auto& s) { s.beat.stalled_ms = 1000; })), "");
  EXPECT_EQ(not_ready(with([](auto& s) { s.beat.stalled_ms = 1001; })), "no step for 1001 ms");
  EXPECT_EQ(not_ready(with([](auto& s) { s.draining = true; })), "draining");
}

TEST(CellHealth, ARestartIsNeitherAStartUpNorAReasonToEndTheSupervisor) {
  const SupervisorStatus s = with([](auto& x) {
    x.phase = CellPhase::kBackoff;
    x.last_failure = "mpirun exited with status 1";
  });
  EXPECT_EQ(not_ready(s), "waits to start again: mpirun exited with status 1");
  EXPECT_EQ(why_not_started(s), "");
  EXPECT_EQ(why_not_live(s), "");
}

TEST(CellHealth, ASupervisorThatHangsIsNotLive) {
  EXPECT_EQ(why_not_live(with([](auto& s) { s.turn_age = 60s; })), "");
  EXPECT_EQ(why_not_live(with([](auto& s) { s.turn_age = 61s; })),
            "the supervisor has not turned for 61000 ms");
}

}  // namespace
}  // namespace millrace
