#include "kernels/rms_norm.h"

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class RmsNormTest : public EachSet {};
MILLRACE_TEST_EACH_SET(RmsNormTest);

std::vector<float> run(const KernelTable& table, const std::vector<float>& x, std::int64_t t,
                       const std::vector<float>& weight, const Context& context = {}) {
  const auto d = static_cast<std::int64_t>(weight.size());
  std::vector<float> out = poisoned(t * d);
  table.rms_norm(context, matrix(x.data(), t, d), weight, 1e-5F, matrix(out.data(), t, d));
  return out;
}

TEST(RmsNormReference, HandComputed) {
  // mean of squares of {3, 4} is 12.5; eps 1e-5 moves the result by 4e-7 of it.
  const auto out = run(reference_table(), {3, 4}, 1, {1, 2});
  EXPECT_NEAR(out[0], 3 / std::sqrt(12.50001), 1e-7);
  EXPECT_NEAR(out[1], 8 / std::sqrt(12.50001), 1e-7);
}

TEST_P(RmsNormTest, MatchesTheReference) {
  for (const std::int64_t d : {1, 15, 16, 17, 64, 100, 2048}) {
    for (const std::int64_t t : {0, 1, 3, 67}) {
      const auto x = random_values(t * d, 1, 5.0F);
      const auto weight = random_values(d, 2);
      // The sum of squares has only positive terms: (D/16 + 6) roundings, halved by the root,
      // then 4.
      const double relative = kEps * (static_cast<double>(d) / 16 + 12);
      expect_close(run(set(), x, t, weight), run(reference_table(), x, t, weight), relative, 0,
                   "d=" + std::to_string(d));
    }
  }
}

TEST_P(RmsNormTest, BitsOfARowStandAlone) {
  const auto x = random_values(70 * 129, 3);
  const auto weight = random_values(129, 4);
  const auto all = run(set(), x, 70, weight);
  for (std::int64_t t = 0; t < 70; ++t) {
    const std::vector<float> row(x.begin() + t * 129, x.begin() + (t + 1) * 129);
    const std::vector<float> want(all.begin() + t * 129, all.begin() + (t + 1) * 129);
    expect_same_bits(run(set(), row, 1, weight), want, "row");
  }
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    expect_same_bits(run(set(), x, 70, weight, {&pool}), all, "threads");
  }
}

TEST_P(RmsNormTest, InPlace) {
  auto x = random_values(5 * 33, 5);
  const auto weight = random_values(33, 6);
  const auto want = run(set(), x, 5, weight);
  set().rms_norm({}, matrix<const float>(x.data(), 5, 33), weight, 1e-5F, matrix(x.data(), 5, 33));
  expect_same_bits(x, want, "in place");
}

TEST_P(RmsNormTest, ZerosStayZeros) {
  EXPECT_EQ(run(set(), {0, 0, 0}, 1, {1, 1, 1}), (std::vector<float>{0, 0, 0}));
}

TEST(RmsNormBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  const auto x = random_values(9 * 1000, 7);
  const auto weight = random_values(1000, 8);
  expect_same_bits(run(cpu_table(Isa::kAvx2), x, 9, weight),
                   run(cpu_table(Isa::kAvx512), x, 9, weight), "sets");
}

}  // namespace
}  // namespace millrace::kernels::testing
