#include "coordinator/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/support/scheduler_harness.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using testing::expected_output;
using testing::kVocab;
using Harness = testing::SchedulerHarness;
using ::testing::HasSubstr;
using testing::make_request;

SchedulerLimits small_limits() {
  SchedulerLimits limits;
  limits.stages = 2;
  limits.lanes = 2;
  limits.max_sequences = 4;
  limits.blocks = 32;
  limits.block_tokens = 4;
  limits.max_step_tokens = 24;
  limits.prefill_chunk_tokens = 16;
  limits.max_context_tokens = 100;
  limits.vocab_size = kVocab;
  return limits;
}

// One stage and one lane, with a plan ahead.
SchedulerLimits async_limits() {
  SchedulerLimits limits = small_limits();
  limits.stages = limits.lanes = 1;
  limits.async = true;
  return limits;
}

// Prompts take what the limit leaves them while somebody decodes, in any lane, and else all there
// is.
TEST(Scheduler, PrefillIsLimitedWhileSequencesDecode) {
  SchedulerLimits limits = small_limits();
  limits.stages = 1;
  Scheduler scheduler(limits);
  scheduler.limit_prefill(5);
  const auto next = [&] {
    const StepPlan plan = *scheduler.next_plan();
    for (std::uint32_t lane = 0; lane < 2; ++lane) {
      StepResult result{plan.step, lane, {}, {}};
      for (const Chunk& chunk : plan.lanes[lane].chunks) {
        if (chunk.sample) result.sampled.push_back({chunk.slot, {7, 0}, {}});
      }
      EXPECT_TRUE(scheduler.on_result(result).has_value());
    }
    return plan;
  };
  ASSERT_TRUE(scheduler.submit(make_request(1, 16, 3, kVocab)).has_value());
  EXPECT_EQ(next().lanes[0].chunks[0].tokens.size(), 16U) << "nobody decodes yet";
  for (const RequestId id : {2U, 3U, 4U}) {
    ASSERT_TRUE(scheduler.submit(make_request(id, 12, 1, kVocab)).has_value());
  }
  for (int step = 0; step < 2; ++step) {
    const StepPlan plan = next();
    EXPECT_EQ(plan.bucket, 8U);
    std::size_t prompt_tokens[2] = {};
    for (std::size_t lane = 0; lane < 2; ++lane) {
      for (const Chunk& chunk : plan.lanes[lane].chunks) {
        if (!chunk.sample) prompt_tokens[lane] += chunk.tokens.size();
      }
    }
    EXPECT_THAT(prompt_tokens, ElementsAre(5U, 5U)) << "the other lane's steps are as long";
  }
  const StepPlan rest = next();
  EXPECT_GT(rest.lanes[1].chunks.back().tokens.size(), 5U) << "the first has ended";
}

TEST(Scheduler, OneSequenceIsPrefilledInChunksThenDecoded) {
  SchedulerLimits limits = small_limits();
  limits.stages = limits.lanes = 1;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.submit(make_request(1, 20, 2, kVocab)).has_value());

  const StepPlan first = *scheduler.next_plan();
  ASSERT_EQ(first.lanes[0].starts.size(), 1U);
  EXPECT_TRUE(first.lanes[0].starts[0].history.empty());
  ASSERT_EQ(first.lanes[0].chunks.size(), 1U);
  EXPECT_EQ(first.lanes[0].chunks[0].tokens.size(), 16U);
  EXPECT_EQ(first.lanes[0].chunks[0].new_blocks.size(), 4U);
  EXPECT_FALSE(first.lanes[0].chunks[0].sample);
  EXPECT_EQ(first.exchange, ExchangePath::kAllToAllExact);
  EXPECT_EQ(first.bucket, 16U);
  EXPECT_FALSE(scheduler.next_plan().has_value()) << "one stage, one plan in flight";
  ASSERT_TRUE(scheduler.on_result({1, 0, {}, {}}).has_value());

  const StepPlan second = *scheduler.next_plan();
  EXPECT_TRUE(second.lanes[0].starts.empty());
  EXPECT_EQ(second.lanes[0].chunks[0].position, 16U);
  EXPECT_EQ(second.lanes[0].chunks[0].tokens.size(), 4U);
  EXPECT_TRUE(second.lanes[0].chunks[0].sample);
  const auto events = scheduler.on_result({2, 0, {{0, {77, 0}, {}}}, {}});
  ASSERT_TRUE(events.has_value());
  ASSERT_EQ(events->tokens.size(), 1U);
  EXPECT_EQ(events->tokens[0].token.token, 77);

  const StepPlan third = *scheduler.next_plan();
  EXPECT_EQ(third.lanes[0].chunks[0].tokens, std::vector<std::int32_t>{77});
  EXPECT_EQ(third.lanes[0].chunks[0].position, 20U);
  EXPECT_EQ(third.exchange, ExchangePath::kAllToAllFixed);
  EXPECT_EQ(third.bucket, 1U);
  const auto last = scheduler.on_result({3, 0, {{0, {78, 0}, {}}}, {}});
  EXPECT_EQ(last->tokens[0].finish, FinishReason::kLength);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.status().kv_tokens_used, 0U);
}

TEST(Scheduler, ChunksOfOnePromptFillThePipeline) {
  Scheduler scheduler(small_limits());
  ASSERT_TRUE(scheduler.submit(make_request(1, 32, 1, kVocab)).has_value());
  EXPECT_TRUE(scheduler.next_plan().has_value());
  const std::optional<StepPlan> second = scheduler.next_plan();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->lanes[0].chunks[0].position, 16U);
  EXPECT_FALSE(scheduler.next_plan().has_value());
}

TEST(Scheduler, TokensDoNotDependOnLoadPreemptionOrGrid) {
  for (const std::uint32_t depth : {1U, 2U, 3U, 0U}) {  // stages; 0: one, asynchronous
    const std::uint32_t stages = std::max(depth, 1U);
    for (const std::uint32_t lanes : {1U, 2U}) {
      for (const std::uint32_t blocks : {25U, 32U, 200U}) {  // 25: one sequence of 100 just fits
        SchedulerLimits limits = small_limits();
        limits.stages = stages;
        limits.async = depth == 0;
        limits.lanes = lanes;
        limits.blocks = blocks;
        Harness harness(limits);
        std::map<RequestId, std::vector<std::int32_t>> expected;
        std::mt19937 random(stages * 100 + lanes * 10 + blocks);
        for (RequestId id = 1; id <= 40; ++id) {
          SequenceRequest request = make_request(id, 1 + random() % 60, 1 + random() % 40, kVocab);
          request.stop_token_ids = {5, 6, 7, 8, 9};
          request.min_new_tokens = random() % 3;
          expected[id] = expected_output(request, kVocab);
          ASSERT_TRUE(harness.scheduler.submit(request).has_value());
          for (unsigned i = random() % 4; i > 0; --i) harness.step();
        }
        harness.run();
        EXPECT_EQ(harness.output, expected) << depth << "x" << lanes << " blocks " << blocks;
        EXPECT_EQ(harness.scheduler.status().kv_tokens_used, 0U);
        const std::uint64_t preemptions = harness.scheduler.status().preemptions;
        EXPECT_TRUE(blocks != 25 || preemptions > 0);
        EXPECT_TRUE(blocks != 200 || preemptions == 0);
        EXPECT_EQ(harness.workers().tokens_of_slots() > 0, limits.async);
      }
    }
  }
}

TEST(AsyncScheduler, GoesOnWithTokensThatItDoesNotKnow) {
  Scheduler scheduler(async_limits());
  ASSERT_TRUE(scheduler.submit(make_request(1, 20, 3, kVocab)).has_value());
  const StepPlan first = *scheduler.next_plan();
  const StepPlan second = *scheduler.next_plan();
  EXPECT_EQ(second.lanes[0].chunks[0].position, 16U);
  EXPECT_TRUE(second.lanes[0].chunks[0].sample);
  EXPECT_FALSE(scheduler.next_plan().has_value()) << "two plans in flight";

  ASSERT_TRUE(scheduler.on_result({1, 0, {}, {}}).has_value());
  const StepPlan third = *scheduler.next_plan();
  EXPECT_THAT(third.lanes[0].chunks[0].tokens, ElementsAre(kTokenOfSlot));
  EXPECT_EQ(third.lanes[0].chunks[0].position, 20U);
  EXPECT_TRUE(third.lanes[0].chunks[0].sample);
  EXPECT_EQ(third.exchange, ExchangePath::kAllToAllFixed);

  EXPECT_EQ(scheduler.on_result({2, 0, {{0, {77, 0}, {}}}, {}})->tokens.at(0).token.token, 77);
  const StepPlan fourth = *scheduler.next_plan();
  EXPECT_THAT(fourth.lanes[0].chunks[0].tokens, ElementsAre(kTokenOfSlot)) << "the second token";
  EXPECT_EQ(fourth.lanes[0].chunks[0].position, 21U);

  EXPECT_EQ(scheduler.on_result({3, 0, {{0, {78, 0}, {}}}, {}})->tokens.at(0).token.token, 78);
  EXPECT_FALSE(scheduler.next_plan().has_value()) << "the third token, the last, is being drawn";
  const auto last = scheduler.on_result({4, 0, {{0, {79, 0}, {}}}, {}});
  EXPECT_EQ(last->tokens.at(0).finish, FinishReason::kLength);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.status().kv_tokens_used, 0U);
}

TEST(AsyncScheduler, FeedsNoTokenThatALimitMakesTheLast) {
  for (const auto& [prompt, max_new] :
       {std::pair(10U, 1U), std::pair(10U, 7U), std::pair(98U, 50U), std::pair(99U, 50U)}) {
    Harness harness(async_limits());
    ASSERT_TRUE(harness.scheduler.submit(make_request(1, prompt, max_new, kVocab)).has_value());
    harness.run();
    const std::uint32_t drawn = std::min(max_new, 100 - prompt);
    EXPECT_EQ(harness.output[1].size(), drawn);
    EXPECT_EQ(harness.finish[1], FinishReason::kLength);
    EXPECT_EQ(harness.workers().tokens_fed(), prompt + drawn - 1);
  }
}

// The stop token is seen when the step after it is under way: that step's token belongs to nobody,
// and the slot and the blocks go to the next sequence.
TEST(AsyncScheduler, ATokenBehindTheStopTokenIsDropped) {
  SchedulerLimits limits = async_limits();
  limits.max_sequences = 1;
  limits.blocks = 3;
  Scheduler scheduler(limits);
  SequenceRequest request = make_request(1, 4, 8, kVocab);
  request.stop_token_ids = {77};
  ASSERT_TRUE(scheduler.submit(request).has_value());
  ASSERT_TRUE(scheduler.submit(make_request(2, 12, 1, kVocab)).has_value());
  scheduler.next_plan();
  const StepPlan surplus = *scheduler.next_plan();
  EXPECT_THAT(surplus.lanes[0].chunks[0].tokens, ElementsAre(kTokenOfSlot));
  const auto stopped = scheduler.on_result({1, 0, {{0, {77, 0}, {}}}, {}});
  EXPECT_EQ(stopped->tokens.at(0).finish, FinishReason::kStop);
  EXPECT_EQ(scheduler.status().kv_tokens_used, 0U);

  const StepPlan next = *scheduler.next_plan();  // goes out behind the surplus step
  ASSERT_EQ(next.lanes[0].starts.size(), 1U);
  EXPECT_EQ(next.lanes[0].starts[0].slot, surplus.lanes[0].chunks[0].slot);
  EXPECT_EQ(next.lanes[0].chunks[0].new_blocks.size(), 3U)
      << "all blocks, those just freed as well";
  EXPECT_TRUE(scheduler.on_result({2, 0, {{0, {5, 0}, {}}}, {}})->tokens.empty());
  const auto ended = scheduler.on_result({3, 0, {{0, {6, 0}, {}}}, {}});
  EXPECT_EQ(ended->tokens.at(0).id, 2U);
  EXPECT_EQ(ended->tokens.at(0).token.token, 6);
  EXPECT_TRUE(scheduler.idle());
}

TEST(AsyncScheduler, StopTokensCostARowOfOneStepAtMost) {
  SchedulerLimits limits = async_limits();
  limits.blocks = 200;
  Harness harness(limits);
  std::uint64_t needed = 0;
  std::uint64_t stopped = 0;
  for (RequestId id = 1; id <= 30; ++id) {
    SequenceRequest request = make_request(id, 5, 60, kVocab);
    for (std::int32_t t = 0; t < 40; ++t) request.stop_token_ids.push_back(t);
    const auto output = expected_output(request, kVocab);
    needed += request.prompt_tokens + output.size() - 1;
    stopped += output.back() < 40 && output.size() < 60 ? 1 : 0;
    ASSERT_TRUE(harness.scheduler.submit(request).has_value());
  }
  harness.run();
  EXPECT_GT(stopped, 5U);
  EXPECT_GT(harness.workers().tokens_fed(), needed);
  EXPECT_LE(harness.workers().tokens_fed(), needed + stopped);
}

TEST(AsyncScheduler, ATokenThatCouldNotBeDrawnEndsTheSequenceOnce) {
  Scheduler scheduler(async_limits());
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 5, kVocab)).has_value());
  scheduler.next_plan();
  scheduler.next_plan();
  const auto events = scheduler.on_result({1, 0, {{0, {kNoToken, 0}, {}}}, {}});
  ASSERT_EQ(events->tokens.size(), 1U);
  EXPECT_EQ(events->tokens[0].finish, FinishReason::kError);
  EXPECT_FALSE(scheduler.idle()) << "a plan is in flight";
  EXPECT_TRUE(scheduler.on_result({2, 0, {{0, {3, 0}, {}}}, {}})->tokens.empty());
  EXPECT_TRUE(scheduler.idle());
}

// Two sequences grow until the younger one must go, while its token is being drawn.
TEST(AsyncScheduler, APreemptedSequenceWaitsForItsToken) {
  SchedulerLimits limits = async_limits();
  limits.blocks = 7;
  limits.max_context_tokens = 28;
  Harness harness(limits);
  std::map<RequestId, std::vector<std::int32_t>> expected;
  for (RequestId id = 1; id <= 2; ++id) {
    const SequenceRequest request = make_request(id, 8, 16, kVocab);
    expected[id] = expected_output(request, kVocab);
    ASSERT_TRUE(harness.scheduler.submit(request).has_value());
  }
  harness.run();
  EXPECT_EQ(harness.output, expected);
  const CellStatus status = harness.scheduler.status();
  EXPECT_GT(status.preemptions, 0U);
  EXPECT_EQ(status.kv_tokens_used, 0U);
  // Without preemption each token but the last is fed once.
  EXPECT_GT(status.recomputed_tokens, 0U);
  EXPECT_EQ(harness.workers().tokens_fed(), 2U * (8 + 16 - 1) + status.recomputed_tokens);
  EXPECT_THAT(harness.scheduler.take_first_planned(), ElementsAre(1, 2)) << "once, not again";
}

TEST(AsyncScheduler, ACancelledSequenceIsInNoLaterPlan) {
  Scheduler scheduler(async_limits());
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 50, kVocab)).has_value());
  ASSERT_TRUE(scheduler.submit(make_request(2, 4, 50, kVocab)).has_value());
  scheduler.next_plan();
  scheduler.next_plan();
  EXPECT_TRUE(scheduler.cancel(1));
  EXPECT_EQ(scheduler.on_result({1, 0, {{0, {3, 0}, {}}, {1, {4, 0}, {}}}, {}})->tokens.size(), 1U);
  const StepPlan third = *scheduler.next_plan();
  ASSERT_EQ(third.lanes[0].chunks.size(), 1U);
  EXPECT_EQ(third.lanes[0].chunks[0].slot, 1U);
  EXPECT_EQ(scheduler.on_result({2, 0, {{0, {5, 0}, {}}, {1, {6, 0}, {}}}, {}})->tokens.at(0).id,
            2U);
}

TEST(AsyncScheduler, IsForOneStage) {
  SchedulerLimits limits = small_limits();
  limits.async = true;
  EXPECT_DEATH(Scheduler{limits}, "CHECK failed");
}

TEST(Scheduler, DecodesOfBothCohortsAreInFlightTogether) {
  SchedulerLimits limits = small_limits();
  limits.lanes = 1;
  Scheduler scheduler(limits);
  testing::ScriptedWorkers workers(limits);
  for (RequestId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(scheduler.submit(make_request(id, 4, 20, kVocab)).has_value());
  }
  for (int i = 0; i < 6; ++i) {  // into the steady state
    const StepPlan plan = *scheduler.next_plan();
    for (const StepResult& r : workers.execute(plan))
      ASSERT_TRUE(scheduler.on_result(r).has_value());
  }
  const StepPlan a = *scheduler.next_plan();
  const StepPlan b = *scheduler.next_plan();
  EXPECT_NE(a.cohort, b.cohort);
  EXPECT_EQ(a.lanes[0].chunks.size(), 2U);
  EXPECT_EQ(b.lanes[0].chunks.size(), 2U);
}

TEST(Scheduler, CancelledSequencesAreInNoLaterPlanAndFreeTheirBlocks) {
  SchedulerLimits limits = small_limits();
  Harness harness(limits);
  for (RequestId id = 1; id <= 6; ++id) {
    ASSERT_TRUE(harness.scheduler.submit(make_request(id, 10, 30, kVocab)).has_value());
  }
  for (int i = 0; i < 10; ++i) harness.step();
  for (const RequestId id : {1U, 4U, 6U}) EXPECT_TRUE(harness.scheduler.cancel(id));
  EXPECT_FALSE(harness.scheduler.cancel(1));
  const auto before = harness.output;
  harness.run();
  for (const RequestId id : {1U, 4U, 6U}) {
    const auto it = before.find(id);
    EXPECT_EQ(harness.output[id].size(), it == before.end() ? 0 : it->second.size());
  }
  for (const RequestId id : {2U, 3U, 5U}) EXPECT_EQ(harness.output[id].size(), 30U);
  EXPECT_EQ(harness.scheduler.status().kv_tokens_used, 0U);
}

TEST(Scheduler, AnIdMayBeUsedAgainWhileAnOldPlanIsInFlight) {
  SchedulerLimits limits = small_limits();
  limits.lanes = 1;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 5, kVocab)).has_value());
  const StepPlan old = *scheduler.next_plan();
  scheduler.cancel(1);
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 5, kVocab)).has_value());
  const auto events =
      scheduler.on_result({old.step, 0, {{old.lanes[0].chunks[0].slot, {3, 0}, {}}}, {}});
  ASSERT_TRUE(events.has_value());
  EXPECT_TRUE(events->tokens.empty()) << "a token of the cancelled sequence went to its namesake";
}

class SchedulerModes : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Async, SchedulerModes, ::testing::Bool());

TEST_P(SchedulerModes, PromptLogprobsComeOnceAndWholeEvenAfterPreemption) {
  SchedulerLimits limits = GetParam() ? async_limits() : small_limits();
  limits.lanes = 1;
  limits.blocks = 25;
  Harness harness(limits);
  for (RequestId id = 1; id <= 6; ++id) {
    SequenceRequest request = make_request(id, 30 + static_cast<std::uint32_t>(id), 40, kVocab);
    request.sampling.prompt_logprobs = true;
    ASSERT_TRUE(harness.scheduler.submit(request).has_value());
  }
  harness.run();
  EXPECT_GT(harness.scheduler.status().preemptions, 0U);
  for (RequestId id = 1; id <= 6; ++id) {
    const SequenceRequest request =
        make_request(id, 30 + static_cast<std::uint32_t>(id), 40, kVocab);
    const auto& event = harness.prompt_logprobs.at(id);
    ASSERT_EQ(event.targets.size(), request.prompt_tokens - 1);
    for (std::uint32_t i = 0; i < event.targets.size(); ++i) {
      EXPECT_EQ(event.targets[i].token, request.tokens[i + 1]);
      EXPECT_EQ(event.targets[i].logprob, -static_cast<float>(i + 1));
    }
  }
}

// Nothing is drawn, so nothing needs room behind the prompt.
TEST_P(SchedulerModes, APromptThatFillsTheContextIsScored) {
  SchedulerLimits limits = GetParam() ? async_limits() : small_limits();
  limits.lanes = 1;
  limits.blocks = 25;  // 100 tokens, the context
  Harness harness(limits);
  const auto scored = [](RequestId id, std::uint32_t tokens) {
    SequenceRequest request = make_request(id, tokens, 0, kVocab);
    request.sampling.prompt_logprobs = true;
    return request;
  };
  for (const auto& [id, tokens] : std::map<RequestId, std::uint32_t>{{1, 100}, {2, 1}, {3, 17}}) {
    ASSERT_TRUE(harness.scheduler.submit(scored(id, tokens)).has_value());
  }
  const SequenceRequest other = make_request(4, 30, 20, kVocab);
  ASSERT_TRUE(harness.scheduler.submit(other).has_value());
  harness.run();
  EXPECT_EQ(harness.prompt_logprobs.at(1).targets.size(), 99U);
  EXPECT_EQ(harness.prompt_logprobs.at(2).targets.size(), 0U);
  EXPECT_EQ(harness.prompt_logprobs.at(3).targets.size(), 16U);
  for (const RequestId id : {1U, 2U, 3U}) {
    EXPECT_TRUE(harness.output[id].empty()) << id;
    EXPECT_EQ(harness.finish.at(id), FinishReason::kLength) << id;
  }
  EXPECT_EQ(harness.output[4], expected_output(other, kVocab));
  EXPECT_EQ(harness.scheduler.status().kv_tokens_used, 0U);
  EXPECT_EQ(harness.scheduler.submit(scored(5, 101)).error().field, "prompt");
  SequenceRequest drawn = scored(6, 100);
  drawn.max_new_tokens = 1;
  EXPECT_EQ(harness.scheduler.submit(drawn).error().field, "prompt");
  SequenceRequest further = scored(7, 50);
  further.prompt_tokens = 49;
  EXPECT_EQ(harness.scheduler.submit(further).error().field, "max_new_tokens");
}

TEST(Scheduler, HistoryGoesWithASequenceThatNeedsIt) {
  SchedulerLimits limits = small_limits();
  limits.stages = limits.lanes = 1;
  Scheduler scheduler(limits);
  SequenceRequest request = make_request(1, 6, 5, kVocab);
  request.sampling.repetition_penalty = 1.1F;
  request.prompt_tokens = 4;  // two tokens were generated before, elsewhere
  ASSERT_TRUE(scheduler.submit(request).has_value());
  const StepPlan plan = *scheduler.next_plan();
  EXPECT_EQ(plan.lanes[0].starts[0].history, request.tokens);
  EXPECT_EQ(plan.lanes[0].starts[0].prompt_tokens, 4U);
  const auto events = scheduler.on_result({1, 0, {{0, {9, 0}, {}}}, {}});
  EXPECT_EQ(events->tokens[0].index, 2U) << "a resumed sequence goes on counting";
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  SchedulerLimits limits = small_limits();
  limits.max_waiting = 2;
  Scheduler scheduler(limits);
  const auto error = [&](SequenceRequest r) { return scheduler.submit(std::move(r)).error(); };

  EXPECT_EQ(error(make_request(1, 0, 5, kVocab)).field, "prompt");
  EXPECT_EQ(error(make_request(1, 5, 0, kVocab)).field, "max_new_tokens");
  EXPECT_EQ(error(make_request(1, 100, 5, kVocab)).field, "prompt");
  SequenceRequest bad_token = make_request(1, 5, 5, kVocab);
  bad_token.tokens[2] = kVocab;
  EXPECT_EQ(error(bad_token).field, "prompt");
  SequenceRequest bad_sampling = make_request(1, 5, 5, kVocab);
  bad_sampling.sampling.top_p = 2;
  EXPECT_EQ(error(bad_sampling).field, "sampling.top_p");
  SchedulerLimits device = limits;
  device.max_logprobs = 20;
  device.max_logit_bias = 2;
  Scheduler on_device(device);
  SequenceRequest many = make_request(1, 5, 5, kVocab);
  many.sampling.logprobs = 21;
  EXPECT_EQ(on_device.submit(many).error().field, "sampling.logprobs");
  EXPECT_THAT(on_device.submit(many).error().message, HasSubstr("at most 20"));
  many.sampling.logprobs = 20;
  many.sampling.logit_bias = {{1, 1.0F}, {2, 1.0F}, {3, 1.0F}};
  EXPECT_EQ(on_device.submit(many).error().field, "sampling.logit_bias");
  many.sampling.logit_bias.pop_back();
  EXPECT_TRUE(on_device.submit(many).has_value());
  EXPECT_TRUE(on_device.cancel(1));
  many.sampling.logprobs = kVocab;
  EXPECT_TRUE(Scheduler(limits).submit(many).has_value()) << "no such limit on the CPU";
  limits.blocks = 10;
  Scheduler tiny(limits);
  EXPECT_EQ(tiny.submit(make_request(1, 20, 30, kVocab)).error().field, "max_new_tokens");
  EXPECT_TRUE(tiny.submit(make_request(1, 20, 21, kVocab)).has_value());

  ASSERT_TRUE(scheduler.submit(make_request(1, 5, 5, kVocab)).has_value());
  EXPECT_EQ(error(make_request(1, 5, 5, kVocab)).field, "id");
  for (RequestId id = 2; id <= 10; ++id) {  // 2 x 4 slots and 2 waiting
    ASSERT_TRUE(scheduler.submit(make_request(id, 5, 5, kVocab)).has_value());
  }
  EXPECT_EQ(error(make_request(11, 5, 5, kVocab)).code, ErrorCode::kResourceExhausted);
}

TEST(Scheduler, RefusesResultsThatMatchNoPlan) {
  SchedulerLimits limits = small_limits();
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 5, kVocab)).has_value());
  const StepPlan plan = *scheduler.next_plan();
  EXPECT_EQ(scheduler.on_result({9, 0, {}, {}}).error().field, "step");
  EXPECT_EQ(scheduler.on_result({1, 7, {}, {}}).error().field, "lane");
  EXPECT_EQ(scheduler.on_result({1, 0, {}, {}}).error().field, "sampled");
  EXPECT_EQ(scheduler.on_result({1, 0, {{0, {kVocab, 0}, {}}}, {}}).error().field, "sampled");
  ASSERT_TRUE(scheduler.on_result({1, 1, {}, {}}).has_value());
  EXPECT_EQ(scheduler.on_result({1, 1, {}, {}}).error().field, "lane");
}

TEST(Scheduler, LogitsThatAreNotFiniteEndTheSequenceWithAnError) {
  SchedulerLimits limits = small_limits();
  limits.stages = limits.lanes = 1;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.submit(make_request(1, 4, 5, kVocab)).has_value());
  scheduler.next_plan();
  const auto events = scheduler.on_result({1, 0, {{0, {kNoToken, 0}, {}}}, {}});
  ASSERT_EQ(events->tokens.size(), 1U);
  EXPECT_FALSE(events->tokens[0].has_token);
  EXPECT_EQ(events->tokens[0].finish, FinishReason::kError);
  EXPECT_EQ(scheduler.status().corrupted_sequences, 1U);
  EXPECT_TRUE(scheduler.idle());
}

}  // namespace
}  // namespace millrace
