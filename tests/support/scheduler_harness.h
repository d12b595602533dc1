// A scheduler that scripted workers serve.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "tests/support/scripted_workers.h"

namespace millrace::testing {

inline constexpr std::int32_t kVocab = 1000;

// Drives a scheduler against scripted workers with as many plans in flight as it gives, and
// collects what comes out.
class SchedulerHarness {
 public:
  explicit SchedulerHarness(const SchedulerLimits& limits) : scheduler(limits), workers_(limits) {}

  bool step() {
    while (std::optional<StepPlan> plan = scheduler.next_plan()) {
      for (StepResult& result : workers_.execute(*plan)) pending_.push_back(std::move(result));
    }
    if (pending_.empty()) return false;
    take(scheduler.on_result(pending_.front()));
    pending_.pop_front();
    return true;
  }

  void run() {
    int rounds = 0;
    while (step()) ASSERT_LT(++rounds, 200'000) << "no end in sight";
    EXPECT_TRUE(scheduler.idle());
  }

  void take(Result<Scheduler::Events> events) {
    ASSERT_TRUE(events.has_value()) << events.error().to_string();
    for (auto& e : events->prompt_logprobs) {
      EXPECT_TRUE(output[e.id].empty()) << "prompt log-probabilities after the first token";
      prompt_logprobs[e.id] = e;
    }
    for (const TokenEvent& e : events->tokens) {
      if (e.has_token) {
        EXPECT_EQ(e.index, output[e.id].size()) << "token out of order or twice";
        output[e.id].push_back(e.token.token);
        cached[e.id] += e.cached_tokens;
      }
      if (e.finish != FinishReason::kNone) finish[e.id] = e.finish;
    }
  }

  Scheduler scheduler;
  std::map<RequestId, std::vector<std::int32_t>> output;
  std::map<RequestId, FinishReason> finish;
  std::map<RequestId, std::uint32_t> cached;
  std::map<RequestId, PromptLogprobsEvent> prompt_logprobs;
  const ScriptedWorkers& workers() const { return workers_; }
  void break_some() { workers_.break_some(); }

 private:
  ScriptedWorkers workers_;
  std::deque<StepResult> pending_;
};

}  // namespace millrace::testing
