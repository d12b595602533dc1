#include "kernels/qk_norm_rope.h"

#include <numbers>

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class QkNormRopeTest : public EachSet {};
MILLRACE_TEST_EACH_SET(QkNormRopeTest);

struct Shape {
  std::int64_t h;
  std::int64_t g;
  std::int64_t d;
};

// Applies the op to the q and k parts of fused qkv rows and returns the rows.
std::vector<float> run(const KernelTable& table, std::vector<float> qkv, const Shape& s,
                       const std::vector<std::int32_t>& positions, const Context& context = {}) {
  const auto t = static_cast<std::int64_t>(positions.size());
  const std::int64_t stride = (s.h + 2 * s.g) * s.d;
  const auto frequencies = rope_inverse_frequencies(10000.0F, s.d);
  std::vector<float> cos = poisoned(t * s.d / 2);
  std::vector<float> sin = poisoned(t * s.d / 2);
  const auto cos_view = matrix(cos.data(), t, s.d / 2);
  const auto sin_view = matrix(sin.data(), t, s.d / 2);
  table.rope_angles(context, positions, frequencies, cos_view, sin_view);
  const auto qw = random_values(s.d, 1);
  const auto kw = random_values(s.d, 2);
  table.qk_norm_rope(context, {heads(qkv.data(), t, s.h, s.d, stride),
                               heads(qkv.data() + s.h * s.d, t, s.g, s.d, stride), qw, kw, 1e-5F,
                               cos_view, sin_view});
  return qkv;
}

TEST(RopeFrequencies, Values) {
  const auto f = rope_inverse_frequencies(1e6F, 64);
  ASSERT_EQ(f.size(), 32U);
  EXPECT_EQ(f[0], 1.0F);
  EXPECT_FLOAT_EQ(f[16], 1e-3F);
  EXPECT_FLOAT_EQ(f[31], static_cast<float>(std::pow(1e6, -62.0 / 64)));
}

// head_dim 2, weights 1: the norm of {3, 4} is sqrt(12.5), and position 1 turns by one radian.
TEST(QkNormRopeReference, HandComputed) {
  std::vector<float> q = {3, 4};
  std::vector<float> k = {1, -1};
  const std::vector<float> ones = {1, 1};
  std::vector<float> cos = {0};
  std::vector<float> sin = {0};
  const std::vector<std::int32_t> positions = {1};
  reference_table().rope_angles({}, positions, rope_inverse_frequencies(1e6F, 2),
                                matrix(cos.data(), 1, 1), matrix(sin.data(), 1, 1));
  EXPECT_FLOAT_EQ(cos[0], 0.5403023F);
  EXPECT_FLOAT_EQ(sin[0], 0.8414710F);
  reference_table().qk_norm_rope(
      {}, {heads(q.data(), 1, 1, 2), heads(k.data(), 1, 1, 2), ones, ones, 1e-12F,
           matrix<const float>(cos.data(), 1, 1), matrix<const float>(sin.data(), 1, 1)});
  const float n = std::sqrt(12.5F);
  EXPECT_NEAR(q[0], (3 * 0.5403023F - 4 * 0.8414710F) / n, 1e-6);
  EXPECT_NEAR(q[1], (4 * 0.5403023F + 3 * 0.8414710F) / n, 1e-6);
  EXPECT_NEAR(k[0], 0.5403023F + 0.8414710F, 1e-6);
  EXPECT_NEAR(k[1], -0.5403023F + 0.8414710F, 1e-6);
}

TEST_P(QkNormRopeTest, MatchesTheReferenceAndLeavesVAlone) {
  for (const Shape s : {Shape{4, 2, 64}, Shape{3, 1, 16}, Shape{2, 2, 24}, Shape{1, 1, 6}}) {
    const std::vector<std::int32_t> positions = {0, 1, 127999, 17, 4096, 3, 2};
    const std::int64_t stride = (s.h + 2 * s.g) * s.d;
    const auto qkv = random_values(7 * stride, 3, 3.0F);
    const auto got = run(set(), qkv, s, positions);
    // A dozen roundings of values of at most sqrt(head_dim).
    expect_close(got, run(reference_table(), qkv, s, positions), 0,
                 16 * kEps * std::sqrt(static_cast<double>(s.d)), "d=" + std::to_string(s.d));
    for (std::int64_t t = 0; t < 7; ++t) {
      for (std::int64_t i = (s.h + s.g) * s.d; i < stride; ++i) {
        const auto at = static_cast<std::size_t>(t * stride + i);
        ASSERT_EQ(got[at], qkv[at]);
      }
    }
  }
}

TEST_P(QkNormRopeTest, BitsOfARowStandAlone) {
  const Shape s{4, 2, 64};
  const std::int64_t stride = 8 * 64;
  std::vector<std::int32_t> positions;
  for (std::int32_t t = 0; t < 65; ++t) positions.push_back(t * 37 % 1000);
  const auto qkv = random_values(65 * stride, 4);
  const auto all = run(set(), qkv, s, positions);
  for (std::int64_t t = 0; t < 65; ++t) {
    const std::vector<float> row(qkv.begin() + t * stride, qkv.begin() + (t + 1) * stride);
    const std::vector<float> want(all.begin() + t * stride, all.begin() + (t + 1) * stride);
    expect_same_bits(run(set(), row, s, {positions[static_cast<std::size_t>(t)]}), want, "row");
  }
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    expect_same_bits(run(set(), qkv, s, positions, {&pool}), all, "threads");
  }
}

TEST(QkNormRopeBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  const Shape s{3, 1, 64};
  const auto qkv = random_values(2 * 5 * 64, 5);
  expect_same_bits(run(cpu_table(Isa::kAvx2), qkv, s, {5, 900}),
                   run(cpu_table(Isa::kAvx512), qkv, s, {5, 900}), "sets");
}

// What rotation is for: q . k depends on the distance of their positions only.
TEST_P(QkNormRopeTest, ScoresDependOnDistance) {
  const Shape s{1, 1, 64};
  const auto row = random_values(3 * 64, 6);
  const auto score = [&](std::int32_t q_position, std::int32_t k_position) {
    const auto a = run(set(), row, s, {q_position});
    const auto b = run(set(), row, s, {k_position});
    double dot = 0;
    for (std::size_t i = 0; i < 64; ++i) dot += static_cast<double>(a[i]) * b[64 + i];
    return dot;
  };
  EXPECT_NEAR(score(10, 3), score(507, 500), 2e-3);
  EXPECT_GT(std::fabs(score(10, 3) - score(10, 9)), 1e-2);
}

}  // namespace
}  // namespace millrace::kernels::testing
