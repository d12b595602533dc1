// add and swiglu: element by element, so one file.
#include "kernels/add.h"
#include "kernels/swiglu.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class ElementwiseTest : public EachSet {};
MILLRACE_TEST_EACH_SET(ElementwiseTest);

std::vector<float> swiglu(const KernelTable& table, const std::vector<float>& gate_up,
                          std::int64_t t, std::int64_t f, const Context& context = {}) {
  std::vector<float> out = poisoned(t * f);
  const auto x = matrix(gate_up.data(), t, 2 * f);
  table.swiglu(context, x.slice_cols(0, f), x.slice_cols(f, f), matrix(out.data(), t, f));
  return out;
}

TEST(SwigluReference, HandComputed) {
  const auto out = swiglu(reference_table(), {0, 1, -1, 5, 2, 3}, 1, 3);
  EXPECT_EQ(out[0], 0.0F);
  EXPECT_NEAR(out[1], 2 * 0.7310586, 1e-6);
  EXPECT_NEAR(out[2], 3 * -0.2689414, 1e-6);
}

TEST_P(ElementwiseTest, SwigluMatchesTheReference) {
  for (const std::int64_t f : {1, 15, 16, 33, 1536}) {
    for (const std::int64_t t : {0, 1, 7}) {
      const auto x = random_values(t * 2 * f, 1, 30.0F);
      // exp within 2 ulp, then four roundings; the least normal number where silu underflows.
      expect_close(swiglu(set(), x, t, f), swiglu(reference_table(), x, t, f), 16 * kEps, 1e-37,
                   "f=" + std::to_string(f));
    }
  }
}

TEST_P(ElementwiseTest, SiluAtTheEdges) {
  const float inf = std::numeric_limits<float>::infinity();
  // Gates in the upper half of the range of exp, at zero, and beyond.
  const std::vector<float> gates = {88.0F, -88.0F, -87.5F, 100.0F, -200.0F, inf, 0.0F, -0.0F, kNan};
  std::vector<float> x = gates;
  x.resize(2 * gates.size(), 1.0F);
  const auto n = static_cast<std::int64_t>(gates.size());
  const auto out = swiglu(set(), x, 1, n);
  EXPECT_EQ(out[0], 88.0F);
  EXPECT_NEAR(out[1], -88 * std::exp(-88.0), 88 * std::exp(-88.0) * 16 * kEps);
  EXPECT_NEAR(out[2], -87.5 * std::exp(-87.5), 88 * std::exp(-88.0) * 16 * kEps);
  EXPECT_EQ(out[3], 100.0F);
  EXPECT_EQ(out[4], 0.0F);  // -0
  EXPECT_EQ(out[5], inf);
  EXPECT_EQ(out[6], 0.0F);
  EXPECT_EQ(out[7], 0.0F);
  EXPECT_TRUE(std::isnan(out[8]));
}

// One value at every place of a row: body and remainder compute the same function.
TEST_P(ElementwiseTest, SiluDoesNotDependOnTheLane) {
  for (const float gate : {0.7F, -3.3F, 11.0F}) {
    for (const std::int64_t f : {1, 7, 16, 39}) {
      const std::vector<float> row(static_cast<std::size_t>(2 * f), gate);
      const float want = swiglu(set(), {gate, gate}, 1, 1)[0];
      for (const float v : swiglu(set(), row, 1, f)) ASSERT_EQ(v, want);
    }
  }
}

TEST_P(ElementwiseTest, SwigluInPlaceAndOnThreads) {
  auto x = random_values(40 * 2 * 1000, 2);
  const auto want = swiglu(set(), x, 40, 1000);
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    expect_same_bits(swiglu(set(), x, 40, 1000, {&pool}), want, "threads");
  }
  const auto view = matrix(x.data(), 40, 2000);
  set().swiglu({}, view.slice_cols(0, 1000), view.slice_cols(1000, 1000), view.slice_cols(0, 1000));
  for (std::size_t t = 0; t < 40; ++t) {
    for (std::size_t i = 0; i < 1000; ++i) ASSERT_EQ(x[t * 2000 + i], want[t * 1000 + i]);
  }
}

TEST(SwigluBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  const auto x = random_values(2 * 9999, 3, 90.0F);
  expect_same_bits(swiglu(cpu_table(Isa::kAvx2), x, 1, 9999),
                   swiglu(cpu_table(Isa::kAvx512), x, 1, 9999), "sets");
}

TEST_P(ElementwiseTest, AddIsExactAndMayBeInPlace) {
  for (const std::int64_t d : {1, 16, 29}) {
    for (const std::int64_t t : {0, 1, 70}) {
      auto a = random_values(t * d, 4);
      const auto b = random_values(t * d, 5);
      std::vector<float> want(a.size());
      for (std::size_t i = 0; i < a.size(); ++i) want[i] = a[i] + b[i];
      std::vector<float> out = poisoned(t * d);
      ThreadPool pool(3);
      set().add({&pool}, matrix<const float>(a.data(), t, d), matrix<const float>(b.data(), t, d),
                matrix(out.data(), t, d));
      expect_same_bits(out, want, "add");
      set().add({}, matrix<const float>(a.data(), t, d), matrix<const float>(b.data(), t, d),
                matrix(a.data(), t, d));
      expect_same_bits(a, want, "in place");
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::testing
