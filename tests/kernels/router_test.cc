#include "kernels/router.h"

#include <algorithm>

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class RouterTest : public EachSet {};
MILLRACE_TEST_EACH_SET(RouterTest);

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Routed run(const KernelTable& table, const std::vector<float>& logits, std::int64_t experts,
           std::int64_t k, const std::vector<float>& bias, bool normalize = true,
           float scaling = 1.0F, const Context& context = {}) {
  const auto t = static_cast<std::int64_t>(logits.size()) / experts;
  Routed r{std::vector<std::int32_t>(static_cast<std::size_t>(t * k), -9), poisoned(t * k)};
  table.router(context, {matrix(logits.data(), t, experts), bias, normalize, scaling,
                         matrix(r.ids.data(), t, k), matrix(r.weights.data(), t, k)});
  return r;
}

std::vector<const KernelTable*> with_reference(const KernelTable* set) {
  return {set, &reference_table()};
}

constexpr double kSigmoid2 = 0.8807970779778823;
constexpr double kSigmoid1 = 0.7310585786300049;

// Logits 2, 0, 1, -1 without bias: experts 0 and 2 with sigmoid(2), sigmoid(1), over their sum +
// 1e-6. Softmax would give 0.731 and 0.269 instead of 0.546 and 0.454.
TEST_P(RouterTest, SigmoidNotSoftmax) {
  for (const KernelTable* table : with_reference(GetParam())) {
    const Routed r = run(*table, {2, 0, 1, -1}, 4, 2, {});
    EXPECT_EQ(r.ids, (std::vector<std::int32_t>{0, 2}));
    const double sum = kSigmoid2 + kSigmoid1 + 1e-6;
    EXPECT_NEAR(r.weights[0], kSigmoid2 / sum, 2e-7);
    EXPECT_NEAR(r.weights[1], kSigmoid1 / sum, 2e-7);
  }
}

// A bias of 0.9 on expert 3 and -0.9 on expert 0 changes the choice to 2 and 3; the weights are
// still the plain sigmoids of 1 and -1.
TEST_P(RouterTest, BiasChoosesButDoesNotWeigh) {
  for (const KernelTable* table : with_reference(GetParam())) {
    const Routed r = run(*table, {2, 0, 1, -1}, 4, 2, {-0.9F, 0, 0, 0.9F}, /*normalize=*/false);
    EXPECT_EQ(r.ids, (std::vector<std::int32_t>{2, 3}));
    EXPECT_NEAR(r.weights[0], kSigmoid1, 2e-7);
    EXPECT_NEAR(r.weights[1], 1 - kSigmoid1, 2e-7);
  }
}

TEST_P(RouterTest, TiesGoToTheLowestIndexAndIdsAscend) {
  for (const KernelTable* table : with_reference(GetParam())) {
    EXPECT_EQ(run(*table, {1, 3, 1, 1, 3}, 5, 3, {}).ids, (std::vector<std::int32_t>{0, 1, 4}));
    EXPECT_EQ(run(*table, {0, 0, 0, 0, 0}, 5, 2, {}).ids, (std::vector<std::int32_t>{0, 1}));
    // Ties of score + bias, where the greater score comes later.
    EXPECT_EQ(run(*table, {0, 0, 0}, 3, 1, {0, 0.5F, 0.5F}).ids, (std::vector<std::int32_t>{1}));
  }
}

// The weights are tiny, so the 1e-6 of the normaliser shows: sigmoid(-14) = 8.315e-7.
TEST_P(RouterTest, NormaliserAddsAMillionth) {
  const double s = 1 / (1 + std::exp(14.0));
  for (const KernelTable* table : with_reference(GetParam())) {
    const Routed r = run(*table, {-14, -14}, 2, 2, {});
    EXPECT_NEAR(r.weights[0], s / (2 * s + 1e-6), 1e-6);
    EXPECT_NEAR(r.weights[0], 0.3122, 1e-3);  // not 0.5
  }
}

TEST_P(RouterTest, ScalingComesLast) {
  for (const KernelTable* table : with_reference(GetParam())) {
    const Routed one = run(*table, {2, 0, 1, -1}, 4, 2, {});
    const Routed scaled = run(*table, {2, 0, 1, -1}, 4, 2, {}, true, 2.5F);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(scaled.weights[i], 2.5 * one.weights[i], 3e-7);
    }
  }
}

TEST_P(RouterTest, NanLogitsStillGiveDistinctExperts) {
  for (const KernelTable* table : with_reference(GetParam())) {
    EXPECT_EQ(run(*table, {kNan, 1, kNan, -1}, 4, 2, {}).ids, (std::vector<std::int32_t>{1, 3}));
    EXPECT_EQ(run(*table, {kNan, kNan, kNan}, 3, 2, {}).ids, (std::vector<std::int32_t>{0, 1}));
  }
}

TEST_P(RouterTest, MatchesTheReferenceAndStandsAlone) {
  for (const std::int64_t experts : {1, 7, 32, 64, 100}) {
    const std::int64_t k = std::min<std::int64_t>(experts, 4);
    const auto logits = random_values(70 * experts, 1, 4.0F);
    const auto bias = random_values(experts, 2, 0.2F);
    const Routed got = run(set(), logits, experts, k, bias);
    const Routed want = run(reference_table(), logits, experts, k, bias);
    EXPECT_EQ(got.ids, want.ids);
    expect_close(got.weights, want.weights, 32 * kEps, 0, "weights");
    for (std::int64_t t = 0; t < 70; ++t) {
      const std::vector<float> row(logits.begin() + t * experts,
                                   logits.begin() + (t + 1) * experts);
      const Routed alone = run(set(), row, experts, k, bias);
      expect_same_bits(alone.weights,
                       {got.weights.begin() + t * k, got.weights.begin() + (t + 1) * k}, "row");
    }
    ThreadPool pool(3);
    const Routed threaded = run(set(), logits, experts, k, bias, true, 1, {&pool});
    EXPECT_EQ(threaded.ids, got.ids);
    expect_same_bits(threaded.weights, got.weights, "threads");
  }
}

TEST(RouterBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  const auto logits = random_values(20 * 64, 3, 6.0F);
  const Routed a = run(cpu_table(Isa::kAvx2), logits, 64, 4, {});
  const Routed b = run(cpu_table(Isa::kAvx512), logits, 64, 4, {});
  EXPECT_EQ(a.ids, b.ids);
  expect_same_bits(a.weights, b.weights, "sets");
}

}  // namespace
}  // namespace millrace::kernels::testing
