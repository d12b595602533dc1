#include "coordinator/cell.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "tests/support/scripted_workers.h"

namespace millrace {
namespace {

using namespace std::chrono_literals;
using testing::expected_output;
using testing::make_request;

constexpr std::int32_t kCellVocab = 500;

class ScriptedLink : public WorkerLink {
 public:
  explicit ScriptedLink(const SchedulerLimits& limits) : workers_(limits) {}

  void send(const StepPlan& plan) override {
    if (plan.shutdown) {
      shutdown = true;
      return;
    }
    if (hang) return;
    for (StepResult& result : workers_.execute(plan)) results_.push_back(std::move(result));
  }
  std::optional<StepResult> receive(std::chrono::microseconds timeout) override {
    if (fail) throw std::runtime_error("rank 3 is gone");
    if (results_.empty()) {
      std::this_thread::sleep_for(timeout);
      return std::nullopt;
    }
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  std::optional<WorkerReport> worker_report() override {
    if (!report) return std::nullopt;
    return std::exchange(report, std::nullopt);
  }

  std::optional<WorkerReport> report;  // the next one
  std::atomic<bool> hang = false;
  std::atomic<bool> fail = false;
  bool shutdown = false;

 private:
  testing::ScriptedWorkers workers_;
  std::deque<StepResult> results_;
};

struct Collected {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<RequestId, std::vector<std::int32_t>> output;
  std::map<RequestId, TokenEvent> last;
  std::string failure;

  CellCallbacks callbacks() {
    CellCallbacks c;
    c.on_tokens = [this](std::vector<TokenEvent> events) {
      const std::lock_guard lock(mutex);
      for (TokenEvent& e : events) {
        if (e.has_token) output[e.id].push_back(e.token.token);
        if (e.finish != FinishReason::kNone) last[e.id] = e;
      }
      changed.notify_all();
    };
    c.on_prompt_logprobs = [](PromptLogprobsEvent) {};
    c.on_failure = [this](const std::string& reason) {
      const std::lock_guard lock(mutex);
      failure = reason;
      changed.notify_all();
    };
    return c;
  }
  template <class F>
  ::testing::AssertionResult wait(F condition) {
    std::unique_lock lock(mutex);
    if (changed.wait_for(lock, 20s, condition)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "nothing happened within 20 s";
  }
};

// A cell with the thread that runs it; ends both.
struct RunningCell {
  RunningCell(const Cell::Options& o, WorkerLink& link, CellCallbacks callbacks)
      : cell(o, link, std::move(callbacks)), thread([this] { ok = cell.run(); }) {}
  ~RunningCell() { end(); }
  bool end() {
    cell.stop();
    if (thread.joinable()) thread.join();
    return ok;
  }

  bool ok = false;
  Cell cell;
  std::thread thread;
};

Cell::Options options() {
  Cell::Options o;
  o.limits.stages = 2;
  o.limits.lanes = 2;
  o.limits.blocks = 64;
  o.limits.vocab_size = kCellVocab;
  o.limits.max_context_tokens = 1000;
  o.step_deadline = 300ms;
  return o;
}

TEST(Cell, ServesManyThreadsAndEndsWithAShutdownPlan) {
  ScriptedLink link(options().limits);
  Collected got;
  {
    RunningCell running(options(), link, got.callbacks());
    Cell& cell = running.cell;
    std::vector<std::thread> clients;
    for (unsigned c = 0; c < 4; ++c) {
      clients.emplace_back([&cell, c] {
        for (unsigned i = 0; i < 10; ++i)
          EXPECT_TRUE(cell.submit(make_request(c * 10 + i, 5 + i, 20, kCellVocab)));
      });
    }
    for (std::thread& t : clients) t.join();
    EXPECT_TRUE(got.wait([&] { return got.last.size() == 40; }));
    for (int i = 0; i < 1000 && !cell.idle(); ++i) std::this_thread::sleep_for(1ms);
    EXPECT_TRUE(cell.idle());
    EXPECT_EQ(cell.status().generated_tokens, 800U);
    EXPECT_EQ(cell.status().ms_since_progress, 0U);
  }
  EXPECT_TRUE(link.shutdown);
  for (RequestId id = 0; id < 40; ++id) {
    EXPECT_EQ(got.output[id],
              expected_output(make_request(id, 5 + static_cast<unsigned>(id) % 10, 20, kCellVocab),
                              kCellVocab));
  }
}

TEST(Cell, CancelEndsTheSequenceAndSaysSo) {
  ScriptedLink link(options().limits);
  link.hang = true;  // so that it is certainly still running
  Collected got;
  RunningCell running(options(), link, got.callbacks());
  Cell& cell = running.cell;
  ASSERT_TRUE(cell.submit(make_request(1, 5, 900, kCellVocab)));
  cell.cancel(1);
  cell.cancel(77);
  EXPECT_TRUE(got.wait([&] { return got.last.contains(1); }));
  EXPECT_EQ(got.last[1].finish, FinishReason::kCancelled);
  EXPECT_FALSE(got.last.contains(77));
}

TEST(Cell, RefusalsArriveAsEvents) {
  ScriptedLink link(options().limits);
  Collected got;
  RunningCell running(options(), link, got.callbacks());
  Cell& cell = running.cell;
  ASSERT_TRUE(cell.submit(make_request(1, 2000, 5, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return got.last.contains(1); }));
  EXPECT_EQ(got.last[1].finish, FinishReason::kError);
  EXPECT_NE(got.last[1].error.find("prompt"), std::string::npos);
}

TEST(Cell, ADrainingCellSaysSoAndTakesWhatWasOnItsWay) {
  ScriptedLink link(options().limits);
  Collected got;
  RunningCell running(options(), link, got.callbacks());
  Cell& cell = running.cell;
  EXPECT_FALSE(cell.status().draining);
  cell.drain();
  EXPECT_TRUE(cell.status().draining);
  ASSERT_TRUE(cell.submit(make_request(2, 2, 5, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return got.last.contains(2); }));
  EXPECT_EQ(got.last[2].finish, FinishReason::kLength);
}

TEST(Cell, AStepThatDoesNotEndFailsTheCellWithinTheDeadline) {
  ScriptedLink link(options().limits);
  link.hang = true;
  Collected got;
  RunningCell running(options(), link, got.callbacks());
  Cell& cell = running.cell;
  ASSERT_TRUE(cell.submit(make_request(1, 5, 5, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return !got.failure.empty(); }));
  EXPECT_NE(got.failure.find("deadline of 300 ms"), std::string::npos) << got.failure;
  EXPECT_FALSE(running.end());
  ASSERT_TRUE(got.last.contains(1)) << "what ran must be told";
  EXPECT_EQ(got.last[1].finish, FinishReason::kCancelled) << "another cell can go on with it";
  EXPECT_NE(got.last[1].error.find(got.failure), std::string::npos) << got.last[1].error;
  EXPECT_FALSE(cell.submit(make_request(2, 5, 5, kCellVocab))) << "nobody would ever answer it";
}

// Answers one plan after the other, each after a while.
class SlowLink final : public ScriptedLink {
 public:
  SlowLink(const SchedulerLimits& limits, std::chrono::milliseconds step)
      : ScriptedLink(limits), step_(step) {}
  std::optional<StepResult> receive(std::chrono::microseconds timeout) override {
    std::optional<StepResult> result = ScriptedLink::receive(timeout);
    if (result) std::this_thread::sleep_for(step_);
    return result;
  }

 private:
  std::chrono::milliseconds step_;
};

TEST(Cell, AStopCancelsWhatRuns) {
  Cell::Options o = options();
  o.step_deadline = 20s;
  SlowLink link(o.limits, 20ms);
  Collected got;
  RunningCell running(o, link, got.callbacks());
  ASSERT_TRUE(running.cell.submit(make_request(1, 5, 900, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return !got.output[1].empty(); }));
  EXPECT_TRUE(running.end());
  EXPECT_EQ(got.last[1].finish, FinishReason::kCancelled);
  EXPECT_EQ(got.failure, "");
}

// The wait for a slot is no part of it.
TEST(Cell, TheFirstEventTellsHowLongAgoTheFirstStepWas) {
  Cell::Options o = options();
  o.limits.stages = o.limits.lanes = o.limits.max_sequences = 1;
  o.step_deadline = 20s;
  SlowLink link(o.limits, 20ms);
  Collected got;
  CellCallbacks callbacks = got.callbacks();
  using Timed = std::pair<TokenEvent, std::chrono::steady_clock::time_point>;
  std::map<RequestId, std::vector<Timed>> events;
  callbacks.on_tokens = [&events, collect = callbacks.on_tokens](std::vector<TokenEvent> batch) {
    for (const TokenEvent& e : batch) {
      events[e.id].emplace_back(e, std::chrono::steady_clock::now());
    }
    collect(std::move(batch));
  };
  {
    RunningCell running(o, link, callbacks);
    for (const RequestId id : {1U, 2U}) {
      ASSERT_TRUE(running.cell.submit(make_request(id, 5, 5, kCellVocab)));
    }
    EXPECT_TRUE(got.wait([&] { return got.last.size() == 2; }));
  }
  for (const auto& [id, told] : events) {
    ASSERT_EQ(told.size(), 5U);
    EXPECT_GE(told[0].first.since_scheduled_us, 20'000U) << id;
    for (std::size_t i = 1; i < 5; ++i) EXPECT_EQ(told[i].first.since_scheduled_us, 0U) << id;
  }
  const auto since_the_first = events[2][0].second - events[1][4].second;
  EXPECT_LE(std::chrono::microseconds(events[2][0].first.since_scheduled_us), since_the_first);
}

// Answers each plan after a millisecond for each of its tokens.
class LinearLink final : public ScriptedLink {
 public:
  using ScriptedLink::ScriptedLink;
  void send(const StepPlan& plan) override {
    if (plan.shutdown) return ScriptedLink::send(plan);
    std::size_t tokens = 0;
    bool decodes = false;
    for (const Chunk& chunk : plan.lanes[0].chunks) {
      tokens += chunk.tokens.size();
      decodes = decodes || (chunk.tokens.size() == 1 && chunk.sample);
    }
    if (decodes) longest_beside_decodes = std::max(longest_beside_decodes, tokens);
    longest = std::max(longest, tokens);
    std::this_thread::sleep_for(std::chrono::milliseconds(tokens));
    ScriptedLink::send(plan);
  }
  std::size_t longest = 0, longest_beside_decodes = 0;
};

// The first prompt, on its own, is as fast as can be and teaches how long prompts take.
TEST(Cell, PromptsOfOthersDoNotHoldUpTokensForLong) {
  Cell::Options o = options();
  o.limits.stages = o.limits.lanes = 1;
  o.step_deadline = 20s;
  o.max_gap = 40ms;
  LinearLink link(o.limits);
  Collected got;
  {
    RunningCell running(o, link, got.callbacks());
    ASSERT_TRUE(running.cell.submit(make_request(1, 200, 100, kCellVocab)));
    EXPECT_TRUE(got.wait([&] { return got.output[1].size() > 2; }));
    ASSERT_TRUE(running.cell.submit(make_request(2, 600, 1, kCellVocab)));
    EXPECT_TRUE(got.wait([&] { return got.last.size() == 2; }));
  }
  EXPECT_EQ(link.longest, 200U);
  EXPECT_LE(link.longest_beside_decodes, 41U);
  EXPECT_GE(link.longest_beside_decodes, 17U);
}

// Two plans in flight: the second is sent with the first, but its time begins when that one ends.
TEST(Cell, AStepBeginsWhenTheOneBeforeHasEnded) {
  Cell::Options o = options();
  o.limits.stages = o.limits.lanes = 1;
  o.limits.async = true;
  o.step_deadline = 2'000ms;
  SlowLink link(o.limits, 1'200ms);
  Collected got;
  RunningCell running(o, link, got.callbacks());
  ASSERT_TRUE(running.cell.submit(make_request(1, 5, 2, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return got.last.contains(1) || !got.failure.empty(); }));
  EXPECT_EQ(got.failure, "");
  EXPECT_EQ(got.output[1].size(), 2U);
  running.end();
  const CellTelemetry telemetry = running.cell.telemetry();
  EXPECT_GE(telemetry.step_seconds.sum, 2.4);
  EXPECT_LT(telemetry.step_seconds.sum, 3.3) << "1.2 + 2.4 s if counted from the sending";
  EXPECT_LT(static_cast<double>(telemetry.busy_ns) / 1e9, 3.3);
}

TEST(Cell, AnIdleCellProbesItsWorkers) {
  Cell::Options o = options();
  o.probe_interval = 20ms;
  ScriptedLink link(o.limits);
  Collected got;
  RunningCell running(o, link, got.callbacks());
  for (int i = 0; i < 1000 && running.cell.status().steps < 3; ++i)
    std::this_thread::sleep_for(5ms);
  EXPECT_GE(running.cell.status().steps, 3U);
  link.hang = true;
  EXPECT_TRUE(got.wait([&] { return !got.failure.empty(); })) << "a hung worker went unnoticed";
}

TEST(Cell, AFailedLinkFailsTheCell) {
  ScriptedLink link(options().limits);
  link.fail = true;
  Collected got;
  RunningCell running(options(), link, got.callbacks());
  Cell& cell = running.cell;
  ASSERT_TRUE(cell.submit(make_request(1, 5, 5, kCellVocab)));
  EXPECT_TRUE(got.wait([&] { return !got.failure.empty(); }));
  EXPECT_EQ(got.failure, "rank 3 is gone");
}

// Fails just after a further request has come into the mailbox.
class LastMomentLink final : public ScriptedLink {
 public:
  using ScriptedLink::ScriptedLink;
  std::optional<StepResult> receive(std::chrono::microseconds) override {
    EXPECT_TRUE(cell->submit(make_request(2, 5, 5, kCellVocab)));
    throw std::runtime_error("rank 3 is gone");
  }
  Cell* cell = nullptr;
};

TEST(Cell, WhatAFailedCellHadNotTakenUpYetIsToldAsWell) {
  LastMomentLink link(options().limits);
  Collected got;
  Cell cell(options(), link, got.callbacks());
  link.cell = &cell;
  ASSERT_TRUE(cell.submit(make_request(1, 5, 5, kCellVocab)));
  EXPECT_FALSE(cell.run());
  for (const RequestId id : {1U, 2U}) {
    ASSERT_TRUE(got.last.contains(id)) << id;
    EXPECT_EQ(got.last[id].finish, FinishReason::kCancelled) << id;
  }
  EXPECT_TRUE(cell.status().draining) << "no gateway may send it more";
}

}  // namespace
}  // namespace millrace
