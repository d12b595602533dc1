// Oracles: tests/golden/sampling_cases.json (Transformers' logits processors, written by
// scripts/make_sampling_golden.py), the reference in kernels/ref/sampling.cc, the known-answer
// vectors of the Random123 distribution, and a chi-square test of the draws.
#include "kernels/sampling.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>
#include <vector>

#include "kernels/philox.h"

namespace millrace::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::int32_t vocab, float spread, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<std::size_t>(vocab));
  for (float& x : logits) x = normal(generator);
  return logits;
}

std::uint64_t bits_of(double u) { return static_cast<std::uint64_t>(u * 0x1p64); }

// Draws at chosen points of [0, 1): near both ends and in the middle of the interval that each
// token owns under `expected`. A token wrongly kept or cut shifts all intervals behind it.
void expect_intervals(std::span<const float> logits, SamplingRow row,
                      const std::vector<double>& expected, SamplingScratch& scratch) {
  double before = 0;
  for (std::size_t token = 0; token < expected.size(); ++token) {
    const double p = expected[token];
    if (p > 1e-5) {
      for (const double inside : {0.05, 0.5, 0.95}) {
        row.bits = bits_of(before + inside * p);
        const auto drawn = sample_token(logits, row, scratch);
        ASSERT_TRUE(drawn) << drawn.error().to_string();
        ASSERT_EQ(*drawn, static_cast<std::int32_t>(token)) << "at " << before + inside * p;
      }
    }
    before += p;
  }
  EXPECT_NEAR(before, 1, 1e-6);
}

TEST(PhiloxTest, KnownAnswersOfRandom123) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformStaysInsideTheOpenInterval) {
  EXPECT_GT(unit_interval(0), 0.0);
  EXPECT_LT(unit_interval(~std::uint64_t{0}), 1.0);
  double sum = 0;
  for (std::uint64_t position = 0; position < 100000; ++position) {
    sum += draw_uniform(42, 0, position);
  }
  EXPECT_NEAR(sum / 100000, 0.5, 4 / std::sqrt(12 * 100000.0));  // four standard deviations
}

TEST(PhiloxTest, SeedChoiceAndPositionAllMatter) {
  const std::uint64_t base = draw_bits(1, 2, 3);
  EXPECT_NE(base, draw_bits(1ULL << 32 | 1, 2, 3));
  EXPECT_NE(base, draw_bits(2, 2, 3));
  EXPECT_NE(base, draw_bits(1, 3, 3));
  EXPECT_NE(base, draw_bits(1, 2, 4));
  EXPECT_NE(base, draw_bits(1, 2, 3 | 1ULL << 32));
}

TEST(SamplingGoldenTest, AgreesWithTransformers) {
  std::ifstream file(MILLRACE_SOURCE_DIR "/tests/golden/sampling_cases.json");
  ASSERT_TRUE(file);
  const auto golden = nlohmann::json::parse(file);
  const auto vocab = golden["vocab"].get<std::int32_t>();
  SamplingScratch scratch(vocab);
  ASSERT_GE(golden["cases"].size(), 20U);
  for (const auto& test : golden["cases"]) {
    const auto& params = test["params"];
    SCOPED_TRACE(params.dump());
    auto logits = test["logits"].get<std::vector<float>>();
    std::vector<std::pair<std::int32_t, float>> bias;
    if (params.contains("logit_bias")) {
      for (const auto& [token, value] : params["logit_bias"].items()) {
        bias.emplace_back(std::stoi(token), value.get<float>());
      }
    }
    ASSERT_TRUE(apply_logit_bias(logits, bias));
    std::vector<TokenCount> counts(logits.size());
    for (const int token : test["prompt"]) counts[static_cast<std::size_t>(token)] |= kInPrompt;
    for (const int token : test["output"]) count_output(counts[static_cast<std::size_t>(token)]);
    const Penalties penalties{params.value("repetition_penalty", 1.0F),
                              params.value("presence_penalty", 0.0F),
                              params.value("frequency_penalty", 0.0F)};
    std::vector<float> by_reference = logits;
    apply_penalties(logits, counts, penalties);
    ref::apply_penalties(by_reference, counts, penalties);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(logits[i], by_reference[i], 2e-6 * (1 + std::abs(by_reference[i])));
    }

    const SamplingRow row{.temperature = params.value("temperature", 1.0F),
                          .top_k = params.value("top_k", 0),
                          .top_p = params.value("top_p", 1.0F),
                          .min_p = params.value("min_p", 0.0F)};
    const auto expected = test["probabilities"].get<std::vector<double>>();
    const std::vector<double> reference = ref::filtered_probabilities(logits, row);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(reference[i] == 0, expected[i] == 0) << i;
      ASSERT_NEAR(reference[i], expected[i], 2e-5 * expected[i] + 1e-9) << i;
    }
    expect_intervals(logits, row, expected, scratch);
  }
}

struct FilterCase {
  std::int32_t vocab;
  float spread;
  SamplingRow row;
};

void PrintTo(const FilterCase& c, std::ostream* out) {
  *out << fmt::format("V={} spread={} temperature={} top_k={} top_p={} min_p={}", c.vocab, c.spread,
                      c.row.temperature, c.row.top_k, c.row.top_p, c.row.min_p);
}

class SamplingFilterTest : public ::testing::TestWithParam<FilterCase> {};

// Odd sizes around vector and block widths; flat and peaked rows. Rows are continuous, so that a
// boundary within rounding error of a token is as good as impossible.
TEST_P(SamplingFilterTest, AgreesWithTheReference) {
  const FilterCase& test = GetParam();
  const auto logits =
      random_logits(test.vocab, test.spread, static_cast<std::uint32_t>(test.vocab));
  SamplingScratch scratch(test.vocab);
  expect_intervals(logits, test.row, ref::filtered_probabilities(logits, test.row), scratch);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, SamplingFilterTest,
    ::testing::Values(FilterCase{1, 1, {}}, FilterCase{3, 1, {}},
                      FilterCase{255, 2, {.top_p = 0.5F}},
                      FilterCase{256, 2, {.temperature = 0.6F}}, FilterCase{257, 2, {.top_k = 256}},
                      FilterCase{1021, 1, {.top_p = 0.99F}}, FilterCase{1021, 6, {.top_p = 0.9F}},
                      FilterCase{1021, 3, {.top_k = 40, .top_p = 0.95F, .min_p = 0.03F}},
                      FilterCase{1021, 3, {.min_p = 0.2F}}, FilterCase{1021, 3, {.top_k = 700}},
                      FilterCase{4099, 0.01F, {.top_p = 0.7F}},
                      FilterCase{4099, 9, {.temperature = 0.05F, .top_k = 50}}));

TEST(SamplingTest, GreedyTakesTheLowestIdAmongTheMaxima) {
  std::vector<float> logits = random_logits(1000, 1, 7);
  logits[311] = logits[312] = logits[990] = 17;
  EXPECT_EQ(*argmax(logits), 311);
  SamplingScratch scratch(1000);
  EXPECT_EQ(*sample_token(logits, {.temperature = 0, .top_k = 3, .bits = ~0ULL}, scratch), 311);
  for (float& x : logits) x = -3;
  EXPECT_EQ(*argmax(logits), 0);
}

TEST(SamplingTest, TopPCutsTiesFromTheHighestId) {
  const std::vector<float> logits(10, 1.5F);  // all equal: top_p 0.35 keeps ids 0 to 3
  const auto reference = ref::filtered_probabilities(logits, {.top_p = 0.35F});
  EXPECT_EQ(std::count(reference.begin(), reference.begin() + 4, 0.25), 4);
  SamplingScratch scratch(10);
  expect_intervals(logits, {.top_p = 0.35F}, reference, scratch);
}

TEST(SamplingTest, TopKKeepsTiesWithTheLast) {
  const std::vector<float> logits = {0, 2, 1, 1, 1, 0};
  SamplingScratch scratch(6);
  const auto reference = ref::filtered_probabilities(logits, {.top_k = 2});
  EXPECT_GT(reference[4], 0);
  EXPECT_EQ(reference[5], 0);
  expect_intervals(logits, {.top_k = 2}, reference, scratch);
}

TEST(SamplingTest, MaskedTokensNeverAppear) {
  std::vector<float> logits(300, -kInfinity);
  logits[17] = -5;
  logits[299] = -5;
  SamplingScratch scratch(300);
  for (const SamplingRow& row :
       {SamplingRow{}, SamplingRow{.top_k = 100}, SamplingRow{.top_p = 0.99F},
        SamplingRow{.min_p = 1e-30F}, SamplingRow{.temperature = 1e-40F}}) {
    SamplingRow low = row;
    low.bits = 0;
    EXPECT_EQ(*sample_token(logits, low, scratch), 17);
    low.bits = ~0ULL;
    EXPECT_EQ(*sample_token(logits, low, scratch), 299);
  }
}

TEST(SamplingTest, RefusesRowsThatAreNotNumbers) {
  SamplingScratch scratch(101);
  for (const std::size_t at : {0U, 50U, 100U}) {
    for (const float bad : {std::nanf(""), kInfinity}) {
      std::vector<float> logits = random_logits(101, 1, 3);
      logits[at] = bad;
      for (const float temperature : {0.0F, 1.0F}) {
        const auto drawn = sample_token(logits, {.temperature = temperature}, scratch);
        ASSERT_FALSE(drawn);
        EXPECT_EQ(drawn.error().field, "logits");
      }
      EXPECT_FALSE(log_sum_exp(logits));
      EXPECT_FALSE(log_probabilities(logits, 1, {}, scratch));
    }
  }
  const std::vector<float> masked(101, -kInfinity);
  EXPECT_FALSE(sample_token(masked, {}, scratch));
  EXPECT_FALSE(sample_token({}, {}, scratch));
}

TEST(SamplingTest, RefusesABiasOutsideTheVocabulary) {
  std::vector<float> logits(5, 0.0F);
  const std::vector<std::pair<std::int32_t, float>> bias = {{1, 1.0F}, {5, 1.0F}};
  const auto result = apply_logit_bias(logits, bias);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("token 5"), std::string::npos);
  EXPECT_EQ(logits[1], 0) << "a refused bias must leave the row as it was";
}

TEST(SamplingTest, OutputCountsSaturate) {
  TokenCount count = kInPrompt;
  for (int i = 0; i < 40000; ++i) count_output(count);
  EXPECT_EQ(count, kInPrompt | kMaxOutputCount);
}

// Pearson's statistic over categories expected at least 20 times, the rest merged, has mean df and
// variance 2 df. Five standard deviations: a correct sampler fails once in millions of seeds, and
// the seed is fixed.
void expect_chi_square(const std::vector<float>& logits, const SamplingRow& base, int draws) {
  const std::vector<double> expected = ref::filtered_probabilities(logits, base);
  std::vector<int> seen(logits.size());
  SamplingScratch scratch(static_cast<std::int32_t>(logits.size()));
  for (int i = 0; i < draws; ++i) {
    SamplingRow row = base;
    row.bits = draw_bits(0x9E3779B97F4A7C15ULL, 3, static_cast<std::uint64_t>(i));
    ++seen[static_cast<std::size_t>(*sample_token(logits, row, scratch))];
  }
  double statistic = 0;
  double rest_expected = 0;
  int rest_seen = 0;
  int categories = 0;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const double e = expected[i] * draws;
    if (expected[i] == 0) {
      ASSERT_EQ(seen[i], 0) << "token " << i << " was cut";
    }
    if (e < 20) {
      rest_expected += e;
      rest_seen += seen[i];
      continue;
    }
    statistic += (seen[i] - e) * (seen[i] - e) / e;
    ++categories;
  }
  if (rest_expected >= 20) {
    statistic += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    ++categories;
  }
  const double freedom = categories - 1;
  ASSERT_GT(freedom, 3);
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom));
  EXPECT_GT(statistic, freedom - 5 * std::sqrt(2 * freedom)) << "too good to be random";
}

TEST(SamplingDistributionTest, WithoutFilters) {
  expect_chi_square(random_logits(500, 1.5F, 11), {}, 200000);
}

TEST(SamplingDistributionTest, WithFilters) {
  expect_chi_square(random_logits(500, 1.5F, 12),
                    {.temperature = 0.8F, .top_k = 100, .top_p = 0.9F, .min_p = 0.01F}, 100000);
}

TEST(LogProbabilityTest, AgreesWithTheReference) {
  for (const std::int32_t vocab : {1, 5, 255, 256, 257, 65536}) {
    for (const float spread : {0.1F, 4.0F, 15.0F}) {
      const auto logits = random_logits(vocab, spread, 5);
      const double exact = ref::log_sum_exp(logits);
      // float's exp and x - max: a few ulp (6e-8 each) of relative error in every term of the sum.
      EXPECT_NEAR(*log_sum_exp(logits), exact, 1e-6) << vocab << " " << spread;
      SamplingScratch scratch(vocab);
      const std::int32_t chosen = vocab / 2;
      const auto own = log_probabilities(logits, chosen, {}, scratch);
      const double want = logits[static_cast<std::size_t>(chosen)] - exact;
      EXPECT_NEAR(*own, want, 1e-6 + 1e-7 * std::abs(want));
    }
  }
}

TEST(LogProbabilityTest, TopIsOrderedWithTiesLowestIdFirst) {
  std::vector<float> logits = random_logits(5000, 2, 9);
  for (const std::size_t i : {4999U, 77U, 2500U}) logits[i] = 30;  // three equal maxima
  SamplingScratch scratch(5000);
  std::vector<LogProbability> top(20);
  ASSERT_TRUE(log_probabilities(logits, 0, top, scratch));
  std::vector<std::int32_t> order(5000);
  for (std::int32_t i = 0; i < 5000; ++i) order[static_cast<std::size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  for (std::size_t i = 0; i < top.size(); ++i) EXPECT_EQ(top[i].token, order[i]) << i;
  EXPECT_EQ(top[0].token, 77);
  EXPECT_NEAR(top[0].logprob, -std::log(3.0), 1e-5);

  std::vector<LogProbability> all(5000);  // as many as there are
  ASSERT_TRUE(log_probabilities(logits, 0, all, scratch));
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].token, order[i]) << i;
}

}  // namespace
}  // namespace millrace::kernels
