#include "coordinator/prefill_pacer.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

using namespace std::chrono_literals;

// A machine whose step of n prompt tokens takes 300 ms and 10 ms a token.
std::chrono::nanoseconds step_time(std::uint32_t tokens) { return 300ms + tokens * 10ms; }

TEST(PrefillPacer, SettlesWhereStepsTakeAsLongAsTheyMay) {
  PrefillPacer pacer(1s, 512);
  EXPECT_EQ(pacer.tokens(), 512U);
  for (int step = 0; step < 8; ++step) pacer.note(pacer.tokens(), step_time(pacer.tokens()));
  EXPECT_NEAR(pacer.tokens(), 70, 3);
}

TEST(PrefillPacer, ComesBackFromOneSlowStep) {
  PrefillPacer pacer(1s, 512);
  pacer.note(256, 60s);
  EXPECT_EQ(pacer.tokens(), PrefillPacer::kLeast);
  for (int step = 0; step < 8; ++step) pacer.note(pacer.tokens(), step_time(pacer.tokens()));
  EXPECT_NEAR(pacer.tokens(), 70, 3);
}

TEST(PrefillPacer, StepsThatAreNotFullDoNotRaiseIt) {
  PrefillPacer pacer(1s, 512);
  pacer.note(512, 8s);
  EXPECT_EQ(pacer.tokens(), 64U);
  pacer.note(10, 20ms);
  EXPECT_EQ(pacer.tokens(), 64U);
  pacer.note(200, 4s);
  EXPECT_EQ(pacer.tokens(), 50U);
  pacer.note(300, 4s);
  EXPECT_EQ(pacer.tokens(), 50U) << "75 in proportion: a larger step says nothing of smaller ones";
}

TEST(PrefillPacer, FastMachinesAndNoLimitAreNotHeldBack) {
  PrefillPacer fast(1s, 512);
  fast.note(512, 20ms);
  EXPECT_EQ(fast.tokens(), 512U);
  PrefillPacer none(0s, 512);
  none.note(512, 100s);
  EXPECT_EQ(none.tokens(), 512U);
  EXPECT_EQ(PrefillPacer(1s, 8).tokens(), 8U);
}

}  // namespace
}  // namespace millrace
