// The prefix cache: what is found is what was computed, and nothing else changes.
#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <random>

#include "tests/support/scheduler_harness.h"

namespace millrace {
namespace {

using testing::expected_output;
using testing::kVocab;
using testing::SchedulerHarness;

using Tokens = std::vector<std::int32_t>;

SchedulerLimits limits() {
  SchedulerLimits limits;
  limits.max_sequences = 4;
  limits.blocks = 64;
  limits.block_tokens = 4;
  limits.max_step_tokens = 24;
  limits.prefill_chunk_tokens = 16;
  limits.max_context_tokens = 128;
  limits.vocab_size = kVocab;
  limits.prefix_cache = true;
  limits.state_tokens = 3;
  return limits;
}

SequenceRequest request(RequestId id, Tokens prompt, std::uint32_t max_new) {
  SequenceRequest request;
  request.id = id;
  request.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
  request.tokens = std::move(prompt);
  request.max_new_tokens = max_new;
  return request;
}

// n tokens that begin with `first` and go up.
Tokens count_up(std::int32_t first, std::size_t n) {
  Tokens tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class PrefixCache : public ::testing::Test {
 protected:
  explicit PrefixCache(const SchedulerLimits& l = limits()) : harness(l) {}

  void submit(SequenceRequest request) {
    expected[request.id] = expected_output(request, kVocab);
    ASSERT_TRUE(harness.scheduler.submit(std::move(request)).has_value());
  }
  void run() {
    harness.run();
    EXPECT_EQ(harness.output, expected);
    EXPECT_EQ(harness.scheduler.status().kv_tokens_used, 0U);
  }
  std::uint64_t hits() const { return harness.scheduler.status().prefix_hit_tokens; }

  SchedulerHarness harness;
  std::map<RequestId, Tokens> expected;
};

TEST_F(PrefixCache, ASecondSequenceGoesOnBehindWhatTheFirstComputed) {
  submit(request(1, count_up(100, 18), 3));
  run();
  // Known: positions [0, 20), as the token drawn last is not fed; of which 19 are looked for.
  ASSERT_TRUE(
      harness.scheduler.submit(request(2, count_up(100, 18) + Tokens{7, 8}, 2)).has_value());
  const StepPlan plan = *harness.scheduler.next_plan();
  ASSERT_EQ(plan.lanes[0].chunks.size(), 1U);
  const Chunk& chunk = plan.lanes[0].chunks[0];
  EXPECT_EQ(plan.lanes[0].starts.size(), 1U);
  EXPECT_EQ(chunk.cached, 16U) << "whole blocks of 4 that both have";
  EXPECT_EQ(chunk.position, 13U) << "three tokens before, for the state";
  EXPECT_EQ(chunk.tokens, Tokens({113, 114, 115, 116, 117, 7, 8}));
  EXPECT_EQ(chunk.new_blocks.size(), 5U);
  EXPECT_TRUE(chunk.sample);
  const auto events = harness.scheduler.on_result({plan.step, 0, {{0, {5, 0}, {}}}, {}});
  EXPECT_EQ(events->tokens[0].cached_tokens, 13U);
  const CellStatus status = harness.scheduler.status();
  EXPECT_EQ(status.prefix_hit_tokens, 13U);
  EXPECT_EQ(status.prefix_rebuilt_tokens, 3U);
  EXPECT_EQ(status.prefix_queried_tokens, 17U + 19U);
  EXPECT_EQ(status.kv_tokens_used, 20U);
}

TEST_F(PrefixCache, AnAnswerIsFoundByTheNextTurn) {
  submit(request(1, count_up(100, 10), 20));
  run();
  submit(request(2, count_up(100, 10) + expected[1] + count_up(500, 9), 4));
  run();
  EXPECT_EQ(hits(), 28U - 3U) << "29 tokens were fed: seven blocks";
}

TEST_F(PrefixCache, LessThanTheStateNeedsIsNotWorthIt) {
  submit(request(1, count_up(100, 3), 1));
  submit(request(2, count_up(100, 3), 1));
  run();
  EXPECT_EQ(hits(), 0U);
}

TEST_F(PrefixCache, TheSamePromptAgainIsComputedForItsLastTokenOnly) {
  submit(request(1, count_up(100, 16), 1));
  run();
  const std::uint64_t fed = harness.workers().tokens_fed();
  submit(request(2, count_up(100, 16), 1));
  run();
  EXPECT_EQ(harness.workers().tokens_fed() - fed, 16U - 12U + 3U)
      << "the last block, and the state";
}

// They divide the work: each goes on behind what the one before has in the same plan.
TEST_F(PrefixCache, SequencesThatArriveTogetherShareOnePrefill) {
  for (RequestId id = 1; id <= 4; ++id) {
    submit(request(id, count_up(100, 100) + Tokens{static_cast<std::int32_t>(id)}, 1));
  }
  run();
  const std::uint64_t fed = harness.workers().tokens_fed();
  EXPECT_LT(fed, 2U * 101U);
  EXPECT_EQ(fed, 4U * 101U - hits());
  EXPECT_EQ(harness.cached[1], 0U) << "nothing was there before";
}

TEST_F(PrefixCache, PromptLogProbabilitiesNeedEveryToken) {
  submit(request(1, count_up(100, 20), 1));
  run();
  SequenceRequest with = request(2, count_up(100, 20), 1);
  with.sampling.prompt_logprobs = true;
  submit(with);
  run();
  EXPECT_EQ(harness.prompt_logprobs[2].targets.size(), 19U);
  EXPECT_EQ(hits(), 0U);
}

TEST_F(PrefixCache, NothingOfASequenceWithBrokenNumbersIsUsedAgain) {
  Scheduler scheduler(limits());
  ASSERT_TRUE(scheduler.submit(request(1, count_up(100, 16), 2)).has_value());
  scheduler.next_plan();
  ASSERT_TRUE(scheduler.on_result({1, 0, {{0, {kNoToken, 0}, {}}}, {}}).has_value());
  EXPECT_EQ(scheduler.status().kv_tokens_cached, 0U);
  ASSERT_TRUE(scheduler.submit(request(2, count_up(100, 16), 2)).has_value());
  EXPECT_EQ(scheduler.next_plan()->lanes[0].chunks[0].position, 0U);
}

// Another sequence holds the same blocks and goes on; what it computes behind them is not found
// either, as nothing leads there.
TEST_F(PrefixCache, NorIsItByWayOfThoseThatShareIt) {
  Scheduler scheduler(limits());
  const auto next = [&](RequestId id, Tokens prompt) {
    EXPECT_TRUE(scheduler.submit(request(id, std::move(prompt), 20)).has_value());
    return *scheduler.next_plan();
  };
  next(1, count_up(100, 16));
  ASSERT_TRUE(scheduler.on_result({1, 0, {{0, {5, 0}, {}}}, {}}).has_value());
  EXPECT_EQ(next(2, count_up(100, 17)).lanes[0].chunks[1].cached, 16U);
  ASSERT_TRUE(
      scheduler.on_result({2, 0, {{0, {kNoToken, 0}, {}}, {1, {6, 0}, {}}}, {}}).has_value());
  const StepPlan third = next(3, count_up(100, 16));
  ASSERT_EQ(third.lanes[0].chunks.size(), 2U);
  EXPECT_EQ(third.lanes[0].chunks[1].position, 0U) << "computed anew";
  ASSERT_TRUE(scheduler.on_result({3, 0, {{1, {7, 0}, {}}, {0, {6, 0}, {}}}, {}}).has_value());
  EXPECT_EQ(next(4, count_up(100, 17)).lanes[0].chunks[2].cached, 16U) << "from the third";
}

TEST(PrefixCacheAsync, NorWhereItWasPreemptedBeforeThatWasKnown) {
  SchedulerLimits l = limits();
  l.async = true;
  l.blocks = 6;
  l.max_context_tokens = 24;
  Scheduler scheduler(l);
  ASSERT_TRUE(scheduler.submit(request(1, count_up(100, 8), 12)).has_value());
  ASSERT_TRUE(scheduler.submit(request(2, count_up(300, 11), 12)).has_value());
  const auto answer = [&](std::uint64_t step, std::int32_t second) {
    return scheduler.on_result({step, 0, {{0, {5, 0}, {}}, {1, {second, 0}, {}}}, {}});
  };
  scheduler.next_plan();
  scheduler.next_plan();
  ASSERT_TRUE(answer(1, 6).has_value());
  ASSERT_EQ(scheduler.next_plan()->lanes[0].chunks.size(), 1U) << "no block for the second";
  EXPECT_EQ(scheduler.status().preemptions, 1U);
  EXPECT_EQ(scheduler.status().kv_tokens_cached, 12U);
  ASSERT_TRUE(answer(2, kNoToken).has_value());
  EXPECT_EQ(scheduler.status().kv_tokens_cached, 0U);
}

TEST_F(PrefixCache, CanBeTurnedOff) {
  SchedulerLimits off = limits();
  off.prefix_cache = false;
  Scheduler scheduler(off);
  for (RequestId id = 1; id <= 2; ++id) {
    ASSERT_TRUE(scheduler.submit(request(id, count_up(100, 16), 1)).has_value());
    const StepPlan plan = *scheduler.next_plan();
    EXPECT_EQ(plan.lanes[0].chunks[0].position, 0U);
    ASSERT_TRUE(scheduler.on_result({plan.step, 0, {{0, {5, 0}, {}}}, {}}).has_value());
  }
  EXPECT_EQ(scheduler.status().kv_tokens_cached, 0U);
  EXPECT_EQ(scheduler.status().prefix_queried_tokens, 0U);
}

SchedulerLimits with_snapshots(std::uint32_t count) {
  SchedulerLimits l = limits();
  l.snapshots = count;
  return l;
}

class PrefixCacheWithStates : public PrefixCache {
 protected:
  PrefixCacheWithStates() : PrefixCache(with_snapshots(3)) {}
};

TEST_F(PrefixCacheWithStates, TheNextTurnFindsTheStateBehindTheAnswer) {
  submit(request(1, count_up(100, 10), 20));
  run();
  EXPECT_EQ(harness.workers().states_saved(), 6U) << "at 8, 12, 16, 20, 24 and 28";
  submit(request(2, count_up(100, 10) + expected[1] + count_up(500, 9), 1));
  const StepPlan plan = *harness.scheduler.next_plan();
  const Chunk& chunk = plan.lanes[0].chunks[0];
  EXPECT_EQ(chunk.position, 28U);
  EXPECT_EQ(chunk.cached, 28U);
  EXPECT_NE(chunk.load, kNoSnapshot);
  ASSERT_EQ(chunk.saves.size(), 1U);
  EXPECT_EQ(chunk.saves[0].position, 36U) << "of 39 tokens";
}

// What is generated keeps one state, the last; that of the prompt's end stays beside it.
TEST_F(PrefixCacheWithStates, AnotherAnswerToTheSamePromptFindsItsState) {
  submit(request(1, count_up(100, 10), 40));
  run();
  submit(request(2, count_up(100, 10), 1));
  run();
  EXPECT_EQ(hits(), 8U);
  EXPECT_EQ(harness.workers().states_loaded(), 1U);
}

// Nobody has saved where two prompts part until one went on there.
TEST_F(PrefixCacheWithStates, WhereOneWentOnTheNextFindsTheState) {
  submit(request(1, count_up(100, 16) + count_up(300, 9), 1));
  run();
  submit(request(2, count_up(100, 16) + count_up(400, 9), 1));
  run();
  EXPECT_EQ(hits(), 13U);
  submit(request(3, count_up(100, 16) + count_up(500, 9), 1));
  run();
  EXPECT_EQ(hits(), 13U + 16U);
  EXPECT_EQ(harness.workers().states_loaded(), 1U);
}

// The piece of the prompt in which its last whole block ends need not be the last piece.
TEST_F(PrefixCacheWithStates, TheLastBlockOfAPromptMayEndInAnEarlierPlan) {
  submit(request(1, count_up(100, 18), 1));
  run();
  submit(request(2, count_up(100, 18) + count_up(500, 9), 1));
  run();
  EXPECT_EQ(hits(), 16U) << "16 tokens, then 2";
}

// They go on behind each other's tokens plan by plan, and would leave a state at each.
TEST(PrefixCacheStates, SequencesThatArriveTogetherLeaveFewStates) {
  SchedulerHarness harness(with_snapshots(5));
  const auto submit = [&](RequestId id, Tokens prompt) {
    ASSERT_TRUE(harness.scheduler.submit(request(id, std::move(prompt), 1)).has_value());
  };
  submit(8, count_up(700, 9));
  harness.run();
  for (RequestId id = 1; id <= 2; ++id) {
    submit(id, count_up(100, 110) + Tokens{static_cast<std::int32_t>(id)});
  }
  harness.run();
  EXPECT_GT(harness.workers().states_saved(), 5U);
  submit(9, count_up(700, 9));
  harness.run();
  EXPECT_EQ(harness.workers().states_loaded(), 1U) << "the first one's is still there";
}

// It goes on behind blocks whose first owner broke, so its own are not published either.
TEST(PrefixCacheOfBroken, ASequenceThatPublishesNothingSavesNothing) {
  Scheduler scheduler(with_snapshots(3));
  const auto next = [&](RequestId id, Tokens prompt, std::uint32_t max_new) {
    EXPECT_TRUE(scheduler.submit(request(id, std::move(prompt), max_new)).has_value());
    return *scheduler.next_plan();
  };
  next(1, count_up(100, 16), 40);
  ASSERT_TRUE(scheduler.on_result({1, 0, {{0, {5, 0}, {}}}, {}}).has_value());
  ASSERT_EQ(next(2, count_up(100, 17), 40).lanes[0].chunks[1].cached, 16U);
  ASSERT_TRUE(
      scheduler.on_result({2, 0, {{0, {kNoToken, 0}, {}}, {1, {6, 0}, {}}}, {}}).has_value());
  for (std::uint64_t step = 3; step < 20; ++step) {
    const StepPlan plan = *scheduler.next_plan();
    EXPECT_TRUE(plan.lanes[0].chunks[0].saves.empty()) << "step " << step;
    ASSERT_TRUE(scheduler.on_result({step, 0, {{1, {6, 0}, {}}}, {}}).has_value());
  }
}

// Further on by way of KV alone: the state at 8 is known, that at 16 is rebuilt from 13.
TEST_F(PrefixCacheWithStates, AStateTooFarInFrontIsNotUsed) {
  submit(request(1, count_up(100, 8), 1));
  submit(request(2, count_up(100, 20) + count_up(300, 3), 1));
  run();
  const std::uint64_t before = hits();
  const std::uint64_t rebuilt = harness.scheduler.status().prefix_rebuilt_tokens;
  submit(request(3, count_up(100, 16) + count_up(400, 3), 1));
  run();
  EXPECT_EQ(hits() - before, 13U);
  EXPECT_EQ(harness.scheduler.status().prefix_rebuilt_tokens - rebuilt, 3U);
}

TEST_F(PrefixCacheWithStates, LessThanRebuildingNeedsIsFoundWithAState) {
  SchedulerLimits l = with_snapshots(3);
  l.state_tokens = 60;
  SchedulerHarness cells(l);
  for (RequestId id = 1; id <= 2; ++id) {
    ASSERT_TRUE(cells.scheduler.submit(request(id, count_up(100, 10), 1)).has_value());
    cells.run();
  }
  EXPECT_EQ(cells.scheduler.status().prefix_hit_tokens, 8U);
  EXPECT_EQ(cells.scheduler.status().prefix_rebuilt_tokens, 0U);
}

TEST(PrefixCacheAsync, AStateIsFoundOnceItsTokensAreKnown) {
  SchedulerLimits l = with_snapshots(3);
  l.async = true;
  SchedulerHarness harness(l);
  const SequenceRequest first = request(1, count_up(100, 10), 20);
  ASSERT_TRUE(harness.scheduler.submit(first).has_value());
  harness.run();
  const Tokens talk = count_up(100, 10) + expected_output(first, kVocab) + count_up(500, 9);
  ASSERT_TRUE(harness.scheduler.submit(request(2, talk, 1)).has_value());
  harness.run();
  EXPECT_EQ(harness.scheduler.status().prefix_hit_tokens, 28U);
}

// A plan names at most as many blocks of others as it may have tokens.
TEST_F(PrefixCache, ALongBeginningComesInSeveralPlans) {
  SchedulerLimits l = limits();
  l.max_step_tokens = 8;
  l.prefill_chunk_tokens = 8;
  SchedulerHarness small(l);
  ASSERT_TRUE(small.scheduler.submit(request(1, count_up(100, 100), 1)).has_value());
  small.run();
  ASSERT_TRUE(small.scheduler.submit(request(2, count_up(100, 100), 1)).has_value());
  const StepPlan first = *small.scheduler.next_plan();
  EXPECT_EQ(first.lanes[0].chunks[0].cached, 32U);
  EXPECT_EQ(first.lanes[0].chunks[0].new_blocks.size(), 10U) << "8 found, 2 for its own tokens";
}

SchedulerLimits two_lanes() {
  SchedulerLimits l = limits();
  l.lanes = 2;
  return l;
}

class PrefixCacheOfTwoLanes : public PrefixCache {
 protected:
  PrefixCacheOfTwoLanes() : PrefixCache(two_lanes()) {}
};

TEST_F(PrefixCacheOfTwoLanes, ALaneThatKnowsTheBeginningMayBeSlightlyFuller) {
  submit(request(1, count_up(100, 20), 30));
  submit(request(2, count_up(300, 20), 30));
  for (int i = 0; i < 4; ++i) harness.step();
  submit(request(3, count_up(300, 20), 1));
  submit(request(4, count_up(300, 20), 1));
  run();
  EXPECT_EQ(hits(), 2U * 13U);
}

// Prompts that are paths through a few segments, so that they begin alike in many ways, under
// little memory, with cancellations: the workers check each position of each block.
struct Storm {
  std::uint32_t stages, lanes;
  bool async;
  std::uint32_t blocks, chunk, state_tokens;
  bool breaks = false;
};

// `output` ends before the first token that is not drawn.
void cut_where_it_breaks(const SequenceRequest& request, Tokens& output) {
  Tokens tokens(request.tokens.begin(), request.tokens.begin() + request.prompt_tokens);
  for (std::size_t i = 0; i < output.size(); ++i) {
    if (tokens.size() >= request.tokens.size() && testing::breaks(tokens)) {
      output.resize(i);
      return;
    }
    tokens.push_back(output[i]);
  }
}

class PrefixCacheStorm : public ::testing::TestWithParam<Storm> {};

TEST_P(PrefixCacheStorm, OutputsAreThoseOfColdRuns) {
  const Storm storm = GetParam();
  std::map<std::uint32_t, std::uint64_t> loaded;  // by snapshots
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    SchedulerLimits l = limits();
    l.stages = storm.stages;
    l.lanes = storm.lanes;
    l.async = storm.async;
    l.blocks = storm.blocks;
    l.prefill_chunk_tokens = storm.chunk;
    l.state_tokens = storm.state_tokens;
    l.snapshots = std::array{0U, 1U, 5U, 64U}[seed % 4];
    l.max_context_tokens = 64;
    SchedulerHarness harness(l);
    if (storm.breaks) harness.break_some();
    std::mt19937 random(seed);
    const auto below = [&](unsigned n) { return static_cast<std::int32_t>(random() % n); };
    std::map<RequestId, Tokens> expected;
    std::vector<RequestId> cancelled;
    for (RequestId id = 1; id <= 60; ++id) {
      Tokens prompt;
      for (int part = 0; part <= below(4); ++part) {
        const std::int32_t segment = below(2);
        prompt = prompt + count_up(100 * segment, static_cast<std::size_t>(5 + 6 * segment));
      }
      if (below(2) == 0) prompt.push_back(below(kVocab));
      SequenceRequest r = request(id, prompt, 1 + static_cast<std::uint32_t>(below(12)));
      r.sampling.prompt_logprobs = below(8) == 0;
      Tokens output = expected_output(r, kVocab);
      // Some have been in another cell, which delivered part of their answer.
      if (!r.sampling.prompt_logprobs && output.size() > 1 && below(4) == 0) {
        r.tokens.push_back(output.front());
        harness.output[id].push_back(output.front());
      }
      if (storm.breaks) cut_where_it_breaks(r, output);
      expected[id] = output;
      ASSERT_TRUE(harness.scheduler.submit(r).has_value());
      for (int steps = below(4); steps > 0; --steps) harness.step();
      const RequestId victim = 1 + static_cast<RequestId>(below(static_cast<unsigned>(id)));
      if (below(6) == 0 && harness.scheduler.cancel(victim)) cancelled.push_back(victim);
    }
    harness.run();
    for (const RequestId id : cancelled) {
      ASSERT_LE(harness.output[id].size(), expected[id].size());
      expected[id].resize(harness.output[id].size());
    }
    for (auto& [id, tokens] : expected) EXPECT_EQ(harness.output[id], tokens) << id;
    const CellStatus status = harness.scheduler.status();
    EXPECT_EQ(status.kv_tokens_used, 0U);
    EXPECT_GT(status.prefix_hit_tokens, 0U);
    EXPECT_LE(status.prefix_hit_tokens, status.prefix_queried_tokens);
    loaded[l.snapshots] += harness.workers().states_loaded();
  }
  for (const std::uint32_t snapshots : {5, 64}) {
    EXPECT_EQ(loaded[snapshots] > 0, storm.state_tokens > 0) << snapshots << " snapshots";
  }
  EXPECT_EQ(loaded[0], 0U);
}

INSTANTIATE_TEST_SUITE_P(
    All, PrefixCacheStorm,
    ::testing::Values(Storm{1, 1, false, 64, 16, 3}, Storm{1, 1, true, 64, 16, 3},
                      Storm{1, 1, true, 18, 1, 3}, Storm{1, 1, false, 18, 2, 6},
                      Storm{2, 2, false, 18, 16, 3}, Storm{3, 1, false, 18, 5, 0},
                      Storm{1, 4, true, 20, 7, 10}, Storm{2, 1, false, 17, 24, 2},
                      Storm{1, 1, true, 18, 16, 3, true}, Storm{2, 2, false, 18, 5, 3, true},
                      Storm{1, 1, false, 20, 16, 0, true}));

}  // namespace
}  // namespace millrace
