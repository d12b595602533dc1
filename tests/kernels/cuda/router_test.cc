#include "kernels/cuda/router.h"

#include <algorithm>
#include <ostream>

#include "kernels/router.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

struct Case {
  std::int64_t experts = 0, k = 0;
  std::vector<float> logits;
  std::vector<float> bias;  // empty: none
  bool normalize = true;
  float scaling = 1;
  std::vector<std::int32_t> sequences;  // empty: no padding
  std::int64_t tokens() const { return static_cast<std::int64_t>(logits.size()) / experts; }
};

Routed run(const Case& c) {
  const DeviceArray<float> logits(c.logits), bias(c.bias);
  const DeviceArray<std::int32_t> sequences(c.sequences);
  const auto pairs = static_cast<std::size_t>(c.tokens() * c.k);
  const DeviceArray<std::int32_t> ids(pairs, -77);
  const DeviceArray<float> weights(pairs, kNan);
  router(default_stream(), {.logits = matrix<const float>(logits.data(), c.tokens(), c.experts),
                            .bias = c.bias.empty() ? nullptr : bias.data(),
                            .normalize = c.normalize,
                            .scaling_factor = c.scaling,
                            .sequences = c.sequences.empty() ? nullptr : sequences.data(),
                            .ids = matrix(ids.data(), c.tokens(), c.k),
                            .weights = matrix(weights.data(), c.tokens(), c.k)});
  return {ids.read(), weights.read()};
}

Routed reference(const Case& c) {
  const auto pairs = static_cast<std::size_t>(c.tokens() * c.k);
  Routed out{std::vector<std::int32_t>(pairs), std::vector<float>(pairs)};
  kernels::RouterArgs args;
  args.logits = matrix(c.logits.data(), c.tokens(), c.experts);
  args.bias = c.bias;
  args.normalize = c.normalize;
  args.scaling_factor = c.scaling;
  args.ids = matrix(out.ids.data(), c.tokens(), c.k);
  args.weights = matrix(out.weights.data(), c.tokens(), c.k);
  reference_table().router({}, args);
  return out;
}

// The gap between the k-th and the next rank in double: below a few ulp of f32 either may win.
bool decided(const Case& c, std::int64_t t) {
  std::vector<double> rank;
  for (std::int64_t e = 0; e < c.experts; ++e) {
    const double logit = c.logits[static_cast<std::size_t>(t * c.experts + e)];
    const double bias = c.bias.empty() ? 0 : c.bias[static_cast<std::size_t>(e)];
    rank.push_back(1 / (1 + std::exp(-logit)) + bias);
  }
  std::sort(rank.rbegin(), rank.rend());
  if (c.k == c.experts) return true;
  return rank[static_cast<std::size_t>(c.k - 1)] - rank[static_cast<std::size_t>(c.k)] > 1e-6;
}

struct Shape {
  std::int64_t experts, k;
};

void PrintTo(const Shape& s, std::ostream* out) { *out << "E=" << s.experts << " K=" << s.k; }

class CudaRouterShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(CudaRouterShapes, AgreesWithTheReference) {
  const auto [experts, k] = GetParam();
  const std::int64_t tokens = 203;
  std::int64_t compared = 0;
  for (int variant = 0; variant < 4; ++variant) {
    const auto seed = static_cast<std::uint32_t>(experts * 10 + variant);
    Case c{experts, k, random_values(tokens * experts, seed, 6), {}};
    if (variant > 0) c.bias = random_values(experts, seed + 1, 0.3F);
    c.normalize = variant != 2;
    if (variant == 3) c.scaling = 2.5F;
    const Routed got = run(c);
    const Routed want = reference(c);
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (!decided(c, t)) continue;
      ++compared;
      for (std::int64_t i = 0; i < k; ++i) {
        const auto at = static_cast<std::size_t>(t * k + i);
        ASSERT_EQ(got.ids[at], want.ids[at]) << t << " " << i;
        ASSERT_NEAR(got.weights[at], want.weights[at], want.weights[at] * 12 * kF32Half);
      }
    }
  }
  EXPECT_GT(compared, 4 * tokens * 9 / 10);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaRouterShapes,
                         ::testing::Values(Shape{64, 4}, Shape{32, 4}, Shape{8, 2}, Shape{1, 1},
                                           Shape{33, 8}, Shape{8, 8}, Shape{100, 6}, Shape{128, 1},
                                           Shape{512, 8}));

// Equal logits and equal biases are equal ranks, whatever exp is.
TEST(CudaRouterTest, TiesGoToTheLowestIndex) {
  for (const std::int64_t experts : {64, 512}) {
    Case c{experts, 4, std::vector<float>(static_cast<std::size_t>(2 * experts), 0.5F), {}};
    for (const std::int64_t e : {61, 40, 7}) {
      c.logits[static_cast<std::size_t>(experts + e)] = 2;
    }
    c.logits[static_cast<std::size_t>(experts + 3)] = -9;
    const Routed got = run(c);
    EXPECT_EQ(got.ids, (std::vector<std::int32_t>{0, 1, 2, 3, 0, 7, 40, 61}));
    for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(got.weights[i], 0.25, 1e-6);
  }
}

TEST(CudaRouterTest, BiasChoosesButDoesNotWeigh) {
  Case c{4, 2, {0, 1, 2, 3}, {10, 0, 0, 0}, false};
  const Routed got = run(c);
  EXPECT_EQ(got.ids, (std::vector<std::int32_t>{0, 3}));
  EXPECT_NEAR(got.weights[0], 0.5, 1e-7);
  EXPECT_NEAR(got.weights[1], 1 / (1 + std::exp(-3.0)), 1e-7);
}

TEST(CudaRouterTest, ExtremeLogitsStillGiveDistinctExperts) {
  Case c{8, 4, {}, {}, false};
  const std::vector<std::vector<float>> rows = {
      std::vector<float>(8, kNan),
      std::vector<float>(8, -kInfinity),
      std::vector<float>(8, kInfinity),
      {kNan, -200, kNan, 200, kNan, -kInfinity, kInfinity, kNan},
      {-300, -300, -60, -300, -300, -300, -300, -61},
      std::vector<float>(8, -0.0F)};
  for (const auto& row : rows) c.logits.insert(c.logits.end(), row.begin(), row.end());
  const Routed got = run(c);
  const Routed want = reference(c);
  EXPECT_EQ(got.ids, (std::vector<std::int32_t>{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,
                                                1, 3, 5, 6, 0, 1, 2, 7, 0, 1, 2, 3}));
  for (std::size_t i = 4; i < got.weights.size(); ++i) {
    EXPECT_NEAR(got.weights[i], want.weights[i], 1e-6 * want.weights[i]) << i;
  }
  EXPECT_TRUE(std::isnan(got.weights[0]));
}

TEST(CudaRouterTest, PaddingHasNoExpertAndNeighboursKeepTheirBits) {
  Case c{64, 4, random_values(9 * 64, 3, 4), random_values(64, 4, 0.2F)};
  const Routed all = run(c);
  c.sequences = {0, 1, -1, 2, 2, -1, 3, 4, -5};
  for (std::int64_t i = 0; i < 64; ++i) c.logits[static_cast<std::size_t>(2 * 64 + i)] = kNan;
  const Routed padded = run(c);
  for (std::size_t t = 0; t < 9; ++t) {
    for (std::size_t i = 0; i < 4; ++i) {
      const bool padding = c.sequences[t] < 0;
      EXPECT_EQ(padded.ids[t * 4 + i], padding ? -1 : all.ids[t * 4 + i]);
      EXPECT_EQ(padded.weights[t * 4 + i], padding ? 0 : all.weights[t * 4 + i]);
    }
  }
  const Case one{64, 4, rows_of(c.logits, 7, 1, 64), c.bias};
  const Routed alone = run(one);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(alone.ids[i], all.ids[7 * 4 + i]);
    EXPECT_EQ(alone.weights[i], all.weights[7 * 4 + i]);
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
