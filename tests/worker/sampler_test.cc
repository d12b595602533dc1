#include "worker/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/philox.h"

namespace millrace {
namespace {

constexpr std::int32_t kVocab = 331;

std::vector<float> random_logits(std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = normal(generator);
  return logits;
}

SamplingParams busy_params() {
  SamplingParams params;
  params.temperature = 0.8F;
  params.top_k = 60;
  params.top_p = 0.97F;
  params.repetition_penalty = 1.1F;
  params.presence_penalty = 0.4F;
  params.frequency_penalty = 0.2F;
  params.logit_bias = {{7, 1.5F}};
  params.seed = 99;
  return params;
}

// Generates `count` tokens from logits that depend on the position only.
std::vector<std::int32_t> generate(Sampler& sampler, SlotId slot, std::uint64_t from, int count) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    const std::uint64_t position = from + static_cast<std::uint64_t>(i);
    const auto sampled =
        sampler.sample(slot, position, random_logits(static_cast<std::uint32_t>(position)));
    EXPECT_TRUE(sampled) << sampled.error().to_string();
    tokens.push_back(sampled->chosen.token);
  }
  return tokens;
}

TEST(SamplerTest, GreedyIsTheArgmax) {
  Sampler sampler(1, kVocab);
  ASSERT_TRUE(sampler.start({.slot = 0, .sampling = {.temperature = 0}}));
  const auto logits = random_logits(4);
  const auto sampled = sampler.sample(0, 0, logits);
  ASSERT_TRUE(sampled);
  EXPECT_EQ(sampled->chosen.token, std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_EQ(sampled->chosen.logprob, 0);
  EXPECT_TRUE(sampled->top.empty());
}

TEST(SamplerTest, MatchesTheReferenceStepByStep) {
  const SamplingParams params = busy_params();
  const std::vector<std::int32_t> prompt = {3, 7, 7, 200};
  Sampler sampler(2, kVocab);
  ASSERT_TRUE(
      sampler.start({.slot = 1, .sampling = params, .prompt_tokens = 4, .history = prompt}));
  std::vector<kernels::TokenCount> counts(kVocab);
  for (const std::int32_t token : prompt)
    counts[static_cast<std::size_t>(token)] = kernels::kInPrompt;
  for (std::uint64_t position = 4; position < 204; ++position) {
    auto logits = random_logits(static_cast<std::uint32_t>(position));
    const auto sampled = sampler.sample(1, position, logits);
    ASSERT_TRUE(sampled);
    logits[7] += 1.5F;
    kernels::ref::apply_penalties(logits, counts, {1.1F, 0.4F, 0.2F});
    const auto p = kernels::ref::filtered_probabilities(
        logits, {.temperature = 0.8F, .top_k = 60, .top_p = 0.97F});
    const auto expected = kernels::ref::draw(p, kernels::draw_uniform(99, 0, position));
    ASSERT_EQ(sampled->chosen.token, expected) << position;
    kernels::count_output(counts[static_cast<std::size_t>(expected)]);
  }
}

// Contract C1: a preemption or replay at any point goes on with the same tokens.
TEST(SamplerTest, ReplayContinuesWithTheSameTokens) {
  const std::vector<std::int32_t> prompt = {5, 6, 7, 8, 9};
  const SamplingParams params = busy_params();
  Sampler sampler(3, kVocab);
  ASSERT_TRUE(
      sampler.start({.slot = 0, .sampling = params, .prompt_tokens = 5, .history = prompt}));
  const auto whole = generate(sampler, 0, 5, 40);
  for (const int cut : {0, 1, 17, 39}) {
    auto history = prompt;
    history.insert(history.end(), whole.begin(), whole.begin() + cut);
    ASSERT_TRUE(
        sampler.start({.slot = 2, .sampling = params, .prompt_tokens = 5, .history = history}));
    const auto tail = generate(sampler, 2, static_cast<std::uint64_t>(5 + cut), 40 - cut);
    EXPECT_TRUE(std::equal(tail.begin(), tail.end(), whole.begin() + cut)) << cut;
  }
}

TEST(SamplerTest, SlotsDoNotSeeEachOther) {
  const SamplingParams params = busy_params();
  Sampler alone(1, kVocab);
  ASSERT_TRUE(alone.start({.slot = 0, .sampling = params}));
  const auto expected = generate(alone, 0, 0, 20);

  Sampler shared(2, kVocab, 2);
  SamplingParams other = params;
  other.seed = 5;
  ASSERT_TRUE(shared.start({.slot = 0, .sampling = params}));
  ASSERT_TRUE(shared.start({.slot = 1, .sampling = other}));
  for (std::uint64_t position = 0; position < 20; ++position) {
    const auto logits = random_logits(static_cast<std::uint32_t>(position));
    ASSERT_TRUE(shared.sample(1, position, logits, 1));
    EXPECT_EQ(shared.sample(0, position, logits)->chosen.token, expected[position]);
  }
}

TEST(SamplerTest, ASlotForgetsItsFormerSequence) {
  const SamplingParams params = busy_params();
  Sampler sampler(1, kVocab);
  ASSERT_TRUE(sampler.start({.slot = 0, .sampling = params}));
  const auto first = generate(sampler, 0, 0, 30);
  ASSERT_TRUE(sampler.start({.slot = 0, .sampling = params}));
  EXPECT_EQ(generate(sampler, 0, 0, 30), first);
}

TEST(SamplerTest, LogprobsComeFromRawLogits) {
  SamplingParams params = busy_params();
  params.logprobs = 3;
  Sampler sampler(1, kVocab);
  ASSERT_TRUE(sampler.start({.slot = 0, .sampling = params}));
  const auto logits = random_logits(1);
  const auto sampled = sampler.sample(0, 0, logits);
  ASSERT_TRUE(sampled);
  const double total = kernels::ref::log_sum_exp(logits);
  const auto raw = logits[static_cast<std::size_t>(sampled->chosen.token)];
  EXPECT_NEAR(sampled->chosen.logprob, raw - total, 2e-6);
  ASSERT_EQ(sampled->top.size(), 3U);
  EXPECT_EQ(sampled->top[0].token, std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_GE(sampled->top[0].logprob, sampled->top[1].logprob);

  const auto prompt = sampler.prompt_logprob(logits, 12, 0);
  ASSERT_TRUE(prompt);
  EXPECT_EQ(prompt->target.token, 12);
  EXPECT_NEAR(prompt->target.logprob, logits[12] - total, 2e-6);
  EXPECT_TRUE(prompt->top.empty());
}

TEST(SamplerTest, RefusesWhatAPeerMustNotSend) {
  Sampler sampler(2, kVocab);
  const auto field_of = [&](const SequenceStart& start) {
    const auto result = sampler.start(start);
    return result ? std::string("accepted") : result.error().field;
  };
  SamplingParams penalty;
  penalty.repetition_penalty = 1.2F;
  EXPECT_EQ(field_of({.slot = 2}), "start.slot");
  EXPECT_EQ(field_of({.sampling = {.temperature = -1}}), "sampling.temperature");
  EXPECT_EQ(field_of({.sampling = {.temperature = std::nanf("")}}), "sampling.temperature");
  EXPECT_EQ(field_of({.sampling = {.top_p = 0}}), "sampling.top_p");
  EXPECT_EQ(field_of({.sampling = {.min_p = 1.5F}}), "sampling.min_p");
  EXPECT_EQ(field_of({.sampling = {.logit_bias = {{kVocab, 1}}}}), "sampling.logit_bias");
  EXPECT_EQ(field_of({.sampling = {.logprobs = kVocab + 1}}), "sampling.logprobs");
  EXPECT_EQ(field_of({.sampling = penalty, .prompt_tokens = 1}), "start.prompt_tokens");
  EXPECT_EQ(field_of({.sampling = penalty, .history = {kVocab}}), "start.history");
  EXPECT_EQ(field_of({.sampling = penalty, .history = {-1}}), "start.history");
  const auto logits = random_logits(2);
  EXPECT_EQ(sampler.sample(0, 0, logits).error().field, "chunk.slot") << "refused, hence not bound";
  EXPECT_EQ(sampler.sample(9, 0, logits).error().field, "chunk.slot");
  EXPECT_EQ(sampler.prompt_logprob(logits, kVocab, 0).error().field, "chunk.prompt_targets");
}

TEST(SamplerTest, BadLogitsLeaveTheHistoryUnchanged) {
  const SamplingParams params = busy_params();
  Sampler sampler(2, kVocab);
  ASSERT_TRUE(sampler.start({.slot = 0, .sampling = params}));
  ASSERT_TRUE(sampler.start({.slot = 1, .sampling = params}));
  auto bad = random_logits(1);
  bad[5] = std::nanf("");
  EXPECT_EQ(sampler.sample(0, 0, bad).error().field, "logits");
  EXPECT_EQ(generate(sampler, 0, 0, 10), generate(sampler, 1, 0, 10));
}

TEST(SamplerTest, StatesItsMemory) {
  // 64 slots of 65,536 two-byte counts and one work space: 8 MiB + 1.25 MiB + block sums.
  EXPECT_EQ(Sampler::memory_bytes(64, 65536), (8U << 20) + 65536U * 20 + 256U * 8);
}

}  // namespace
}  // namespace millrace
