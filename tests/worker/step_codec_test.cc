#include "worker/step_codec.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace {
namespace {

StepPlan sample_plan() {
  StepPlan plan{.step = 42, .cohort = 1, .exchange = ExchangePath::kAllGather, .bucket = 64};
  LanePlan lane;
  SequenceStart start{.slot = 3, .prompt_tokens = 2, .history = {5, 6, 7}};
  start.sampling = {.temperature = 0.5F,
                    .top_k = 3,
                    .logit_bias = {{1, 2.0F}},
                    .seed = 99,
                    .choice = 1,
                    .logprobs = 2,
                    .prompt_logprobs = true};
  lane.starts = {start, {.slot = 4}};
  lane.chunks = {
      {.slot = 3,
       .position = 0,
       .saves = {{.snapshot = 4, .position = 2}, {.snapshot = 0, .position = 3}},
       .tokens = {5, 6, 7},
       .new_blocks = {8, 9},
       .prompt_targets = {6, 7, -1}},
      {.slot = 1, .position = 100, .cached = 128, .load = 6, .tokens = {11}, .sample = true}};
  plan.lanes = {lane, {}, lane};
  return plan;
}

StepResult sample_result() {
  return {
      .step = 42,
      .lane = 2,
      .sampled = {{.slot = 1, .chosen = {7, -0.5F}, .top = {{7, -0.5F}, {8, -0.75F}}}, {.slot = 2}},
      .prompt_logprobs = {{.slot = 3, .position = 5, .target = {9, -3.0F}, .top = {{1, -0.1F}}}}};
}

template <class T>
void check_strict(const T& value) {
  std::vector<std::uint8_t> bytes;
  encode(value, bytes);
  T out;
  const auto ok = decode(bytes, out);
  ASSERT_TRUE(ok) << ok.error().to_string();
  EXPECT_EQ(out, value);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    T part;
    ASSERT_FALSE(decode(std::span(bytes).first(n), part)) << n << " of " << bytes.size();
  }
  bytes.push_back(0);
  EXPECT_FALSE(decode(bytes, out));
}

TEST(StepCodec, PlanAndResultAreStrict) {
  check_strict(sample_plan());
  check_strict(StepPlan{});
  check_strict(StepPlan{.step = 7, .shutdown = true});
  check_strict(sample_result());
  check_strict(StepResult{});
}

TEST(StepCodec, InconsistentChunksAreNamed) {
  const auto field_of = [](const StepPlan& plan) {
    std::vector<std::uint8_t> bytes;
    encode(plan, bytes);
    StepPlan out;
    const auto ok = decode(bytes, out);
    return ok ? std::string("accepted") : ok.error().field;
  };
  auto plan = sample_plan();
  plan.lanes[0].chunks[1].tokens.clear();
  EXPECT_EQ(field_of(plan), "StepPlan.chunk.tokens");
  plan = sample_plan();
  plan.lanes[2].chunks[0].prompt_targets.pop_back();
  EXPECT_EQ(field_of(plan), "StepPlan.chunk.prompt_targets");
}

TEST(StepCodec, BadExchangeAndAbsurdCountsAreRefused) {
  std::vector<std::uint8_t> bytes;
  encode(StepPlan{}, bytes);
  StepPlan out;
  auto bad = bytes;
  bad[12] = 3;  // after step and cohort
  EXPECT_EQ(decode(bad, out).error().field, "StepPlan.exchange");
  bad = bytes;
  for (std::size_t i = bad.size() - 4; i < bad.size(); ++i) bad[i] = 0xFF;
  EXPECT_EQ(decode(bad, out).error().field, "StepPlan.lanes");
}

TEST(StepCodec, RandomDamageNeverCrashes) {
  std::mt19937 random(4);
  std::vector<std::uint8_t> plan_bytes;
  std::vector<std::uint8_t> result_bytes;
  encode(sample_plan(), plan_bytes);
  encode(sample_result(), result_bytes);
  StepPlan plan;
  StepResult result;
  for (int round = 0; round < 40000; ++round) {
    auto bytes = round % 2 == 0 ? plan_bytes : result_bytes;
    for (std::uint32_t i = 0, n = 1 + random() % 4; i < n; ++i) {
      bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
    }
    std::vector<std::uint8_t> again;
    if (round % 2 == 0) {
      if (!decode(bytes, plan)) continue;
      encode(plan, again);
    } else {
      if (!decode(bytes, result)) continue;
      encode(result, again);
    }
    ASSERT_EQ(again, bytes);
  }
}

TEST(StepCodec, ASteadyStreamOfStepsReusesItsBuffers) {
  StepPlan plan{.step = 1};
  plan.lanes.resize(2);
  for (auto& lane : plan.lanes) {
    for (std::uint32_t s = 0; s < 64; ++s) {
      lane.chunks.push_back({.slot = s, .position = 10, .tokens = {1}, .sample = true});
    }
  }
  std::vector<std::uint8_t> bytes;
  StepPlan out;
  encode(plan, bytes);
  ASSERT_TRUE(decode(bytes, out));
  const auto* buffer = bytes.data();
  const auto* token = out.lanes[1].chunks[63].tokens.data();
  for (std::uint64_t step = 2; step < 10; ++step) {
    plan.step = step;
    for (auto& lane : plan.lanes) {
      for (auto& chunk : lane.chunks) ++chunk.position;
    }
    encode(plan, bytes);
    ASSERT_TRUE(decode(bytes, out));
    EXPECT_EQ(out, plan);
    EXPECT_EQ(bytes.data(), buffer);
    EXPECT_EQ(out.lanes[1].chunks[63].tokens.data(), token);
  }
}

}  // namespace
}  // namespace millrace
