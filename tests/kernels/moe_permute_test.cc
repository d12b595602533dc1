#include "kernels/moe_permute.h"

#include "kernels/combine.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class MoePermuteTest : public EachSet {};
MILLRACE_TEST_EACH_SET(MoePermuteTest);

struct Grouped {
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> rows;
  std::vector<std::int32_t> tokens;
};

Grouped run(const KernelTable& table, const std::vector<std::int32_t>& ids, std::int64_t k,
            std::int64_t experts) {
  const auto t = static_cast<std::int64_t>(ids.size()) / k;
  Grouped g{std::vector<std::int64_t>(static_cast<std::size_t>(experts + 1), -9),
            std::vector<std::int32_t>(ids.size(), -9), std::vector<std::int32_t>(ids.size(), -9)};
  table.moe_permute({},
                    {matrix(ids.data(), t, k), g.offsets, matrix(g.rows.data(), t, k), g.tokens});
  return g;
}

TEST_P(MoePermuteTest, HandComputed) {
  for (const KernelTable* table : {GetParam(), &reference_table()}) {
    // Three tokens, two experts each; expert 1 gets none, a pair is padding.
    const Grouped g = run(*table, {0, 3, 2, 3, 0, kNoExpert}, 2, 4);
    EXPECT_EQ(g.offsets, (std::vector<std::int64_t>{0, 2, 2, 3, 5}));
    EXPECT_EQ(g.rows, (std::vector<std::int32_t>{0, 3, 2, 4, 1, -1}));
    EXPECT_EQ(g.tokens, (std::vector<std::int32_t>{0, 2, 1, 0, 1, -9}));
  }
}

TEST_P(MoePermuteTest, MatchesTheReference) {
  std::mt19937 rng(1);
  for (const int tokens : {0, 1, 5, 70}) {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < tokens * 4; ++i) ids.push_back(static_cast<std::int32_t>(rng() % 17) - 1);
    const Grouped got = run(set(), ids, 4, 16);
    const Grouped want = run(reference_table(), ids, 4, 16);
    EXPECT_EQ(got.offsets, want.offsets);
    EXPECT_EQ(got.rows, want.rows);
    EXPECT_EQ(got.tokens, want.tokens);
  }
}

TEST_P(MoePermuteTest, OneExpertTakesAll) {
  const Grouped g = run(set(), std::vector<std::int32_t>(6, 2), 1, 4);
  EXPECT_EQ(g.offsets, (std::vector<std::int64_t>{0, 0, 0, 6, 6}));
  EXPECT_EQ(g.tokens, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5}));
}

// There and back: with the identity as expert and all weight on one pair, combine returns the
// input.
TEST_P(MoePermuteTest, CombineUndoesThePermutation) {
  const std::vector<std::int32_t> ids = {0, 2, 1, 2, 0, 1, 0, 2};
  const Grouped g = run(set(), ids, 2, 3);
  const auto x = random_values(4 * 21, 2);
  std::vector<float> y;
  for (std::size_t r = 0; r < 8; ++r) {
    const auto from = static_cast<std::size_t>(g.tokens[r]) * 21;
    y.insert(y.end(), &x[from], &x[from] + 21);
  }
  const std::vector<float> weights = {1, 0, 0, 1, 1, 0, 0, 1};
  std::vector<float> out = poisoned(4 * 21);
  set().combine({}, {matrix<const float>(y.data(), 8, 21), matrix(g.rows.data(), 4, 2),
                     matrix(weights.data(), 4, 2), Accumulate::kStore, matrix(out.data(), 4, 21)});
  EXPECT_EQ(out, x);
}

class CombineTest : public EachSet {};
MILLRACE_TEST_EACH_SET(CombineTest);

std::vector<float> combine(const KernelTable& table, const std::vector<float>& y, std::int64_t d,
                           const std::vector<std::int32_t>& rows, const std::vector<float>& weights,
                           std::int64_t k, Accumulate accumulate, std::vector<float> out,
                           const Context& context = {}) {
  const auto t = static_cast<std::int64_t>(rows.size()) / k;
  table.combine(context, {matrix(y.data(), static_cast<std::int64_t>(y.size()) / d, d),
                          matrix(rows.data(), t, k), matrix(weights.data(), t, k), accumulate,
                          matrix(out.data(), t, d)});
  return out;
}

TEST_P(CombineTest, HandComputed) {
  const std::vector<float> y = {1, 2, 10, 20, 100, 200};  // three rows of two
  for (const KernelTable* table : {GetParam(), &reference_table()}) {
    EXPECT_EQ(
        combine(*table, y, 2, {2, 0, 1, -1}, {0.5F, 3, 2, 7}, 2, Accumulate::kAdd, {1, 1, 4, 4}),
        (std::vector<float>{54, 107, 24, 44}));
    EXPECT_EQ(combine(*table, y, 2, {-1, -1}, {1, 1}, 2, Accumulate::kStore, {kNan, kNan}),
              (std::vector<float>{0, 0}));
  }
}

TEST_P(CombineTest, MatchesTheReferenceInEverySplit) {
  for (const std::int64_t d : {1, 16, 35}) {
    const auto y = random_values(40 * d, 3);
    const auto before = random_values(70 * d, 4);
    const auto weights = random_values(70 * 4, 5);
    std::vector<std::int32_t> rows;
    for (int i = 0; i < 280; ++i) rows.push_back(i * 7 % 41 - 1);
    const auto got = combine(set(), y, d, rows, weights, 4, Accumulate::kAdd, before);
    const auto want = combine(reference_table(), y, d, rows, weights, 4, Accumulate::kAdd, before);
    expect_close(got, want, kEps, 5 * 2 * 4 * kEps, "combine");  // 9 roundings of at most 5
    ThreadPool pool(3);
    expect_same_bits(combine(set(), y, d, rows, weights, 4, Accumulate::kAdd, before, {&pool}), got,
                     "threads");
  }
}

// K ascending from +0, one fused step each, then one addition: spelled out for a sum in which
// another order rounds differently.
TEST(CombineBits, CanonicalOrder) {
  const auto y = random_values(4, 6);
  const auto weights = random_values(4, 7);
  const std::vector<std::int32_t> rows = {3, 0, 2, 1};
  for (const KernelTable* table : cpu_sets()) {
    float sum = 0;
    for (std::size_t k = 0; k < 4; ++k) {
      const float term = y[static_cast<std::size_t>(rows[k])];
      sum = table->name == "portable" ? weights[k] * term + sum : std::fma(weights[k], term, sum);
    }
    const float want = 0.3F + sum;
    EXPECT_EQ(combine(*table, y, 1, rows, weights, 4, Accumulate::kAdd, {0.3F})[0], want)
        << table->name;
  }
}

}  // namespace
}  // namespace millrace::kernels::testing
