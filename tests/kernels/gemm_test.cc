#include "kernels/gemm.h"

#include "kernels/dtype_name.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class GemmTest : public EachSet {};
MILLRACE_TEST_EACH_SET(GemmTest);

std::vector<float> run(const KernelTable& table, const std::vector<float>& x, std::int64_t t,
                       const WeightView& w, const Context& context = {}) {
  std::vector<float> y = poisoned(t * w.rows);
  table.gemm(context, matrix(x.data(), t, w.cols), w, Accumulate::kStore,
             matrix(y.data(), t, w.rows));
  return y;
}

// Error of a sum in 16 lanes: each term passes at most K/16 + 1 roundings in its lane and 4 in the
// tree. Portable rounds products too. Bound by the sum of magnitudes.
void expect_dot_error(const std::vector<float>& y, const std::vector<float>& x, std::int64_t t,
                      const TestWeight& w, const std::string& what) {
  const std::int64_t k = w.view.cols;
  for (std::int64_t i = 0; i < t; ++i) {
    for (std::int64_t n = 0; n < w.view.rows; ++n) {
      double dot = 0;
      double magnitude = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        const double term = static_cast<double>(x[static_cast<std::size_t>(i * k + j)]) *
                            w.values[static_cast<std::size_t>(n * k + j)];
        dot += term;
        magnitude += std::fabs(term);
      }
      const double bound = kEps * (static_cast<double>(k) / 16 + 7) * magnitude;
      ASSERT_NEAR(y[static_cast<std::size_t>(i * w.view.rows + n)], dot, bound)
          << what << " t=" << i << " n=" << n;
    }
  }
}

TEST_P(GemmTest, MatchesTheDefinitionForEveryTypeAndOddSizes) {
  for (const DType dtype : all_dtypes()) {
    // 1536 and 2304 take more than one chunk of K.
    for (const std::int64_t k : {256, 1536, 2304}) {
      for (const std::int64_t n : {1, 5, 19}) {
        const TestWeight w = make_weight(dtype, n, k, 11);
        for (const std::int64_t t : {1, 2, 5, 7, 13}) {
          const std::vector<float> x = random_values(t * k, 12);
          expect_dot_error(run(set(), x, t, w.view), x, t, w,
                           std::string(dtype_name(dtype)) + " k=" + std::to_string(k));
        }
      }
    }
  }
}

TEST_P(GemmTest, RowsThatAreNoMultipleOfALane) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const std::int64_t k : {1, 3, 15, 16, 17, 31, 33, 1030}) {
      const TestWeight w = make_weight(dtype, 7, k, 21);
      for (const std::int64_t t : {1, 3, 9}) {
        const std::vector<float> x = random_values(t * k, 22);
        expect_dot_error(run(set(), x, t, w.view), x, t, w, "k=" + std::to_string(k));
      }
    }
  }
}

TEST_P(GemmTest, ARowsBitsDoNotDependOnItsCompanions) {
  for (const DType dtype : all_dtypes()) {
    const std::int64_t k = 1280;
    const TestWeight w = make_weight(dtype, 21, k, 31);
    const std::int64_t most = 101;  // more than one token block
    const std::vector<float> x = random_values(most * k, 32);
    const std::vector<float> all = run(set(), x, most, w.view);
    for (std::int64_t t = 0; t < most; ++t) {
      const std::vector<float> row(x.begin() + t * k, x.begin() + (t + 1) * k);
      const std::vector<float> want(all.begin() + t * 21, all.begin() + (t + 1) * 21);
      expect_same_bits(run(set(), row, 1, w.view), want, "row " + std::to_string(t));
    }
    for (const std::int64_t t : {2, 3, 4, 5, 6, 7, 70}) {
      const std::vector<float> want(all.begin(), all.begin() + t * 21);
      expect_same_bits(run(set(), x, t, w.view), want, "T=" + std::to_string(t));
    }
  }
}

TEST_P(GemmTest, NorOnWhichRowsOfTheWeightAreTaken) {
  const std::int64_t k = 512;
  const TestWeight w = make_weight(DType::kQ4_K, 37, k, 41);
  const std::vector<float> x = random_values(8 * k, 42);
  const std::vector<float> all = run(set(), x, 8, w.view);
  const std::vector<float> part = run(set(), x, 8, w.view.slice_rows(5, 11));
  for (std::int64_t t = 0; t < 8; ++t) {
    for (std::int64_t n = 0; n < 11; ++n) {
      ASSERT_EQ(part[static_cast<std::size_t>(t * 11 + n)],
                all[static_cast<std::size_t>(t * 37 + n + 5)]);
    }
  }
}

TEST_P(GemmTest, NorOnTheNumberOfThreads) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ6_K}) {
    const TestWeight w = make_weight(dtype, 203, 768, 51);
    for (const std::int64_t t : {1, 30}) {
      const std::vector<float> x = random_values(t * 768, 52);
      const std::vector<float> want = run(set(), x, t, w.view);
      for (const int threads : {2, 3}) {
        ThreadPool pool(threads);
        expect_same_bits(run(set(), x, t, w.view, {&pool}), want, std::to_string(threads));
      }
    }
  }
}

TEST_P(GemmTest, AccumulateAddsTheWholeDotOnce) {
  const TestWeight w = make_weight(DType::kBF16, 18, 1100, 61);
  for (const std::int64_t t : {1, 8}) {
    const std::vector<float> x = random_values(t * 1100, 62);
    const std::vector<float> dot = run(set(), x, t, w.view);
    const std::vector<float> before = random_values(t * 18, 63, 100.0F);
    std::vector<float> y = before;
    set().gemm({}, matrix(x.data(), t, 1100), w.view, Accumulate::kAdd, matrix(y.data(), t, 18));
    for (std::size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], before[i] + dot[i]) << i;
  }
}

TEST_P(GemmTest, StridedRowsAndNothingWrittenBeside) {
  const TestWeight w = make_weight(DType::kF32, 10, 64, 71);
  const std::vector<float> x = random_values(7 * 64, 72);
  const std::vector<float> want = run(set(), x, 7, w.view);
  std::vector<float> wide_x(7 * 80, kNan);
  for (std::size_t t = 0; t < 7; ++t) std::copy_n(&x[t * 64], 64, &wide_x[t * 80 + 8]);
  std::vector<float> wide_y(7 * 13, -7.0F);
  set().gemm({}, matrix(wide_x.data() + 8, 7, 64, 80), w.view, Accumulate::kStore,
             matrix(wide_y.data() + 2, 7, 10, 13));
  for (std::size_t t = 0; t < 7; ++t) {
    for (std::size_t c = 0; c < 13; ++c) {
      const bool inside = c >= 2 && c < 12;
      ASSERT_EQ(wide_y[t * 13 + c], inside ? want[t * 10 + c - 2] : -7.0F);
    }
  }
}

TEST_P(GemmTest, NoTokensAndNoInputs) {
  const TestWeight w = make_weight(DType::kF32, 10, 64, 81);
  set().gemm({}, matrix<const float>(nullptr, 0, 64), w.view, Accumulate::kStore,
             matrix<float>(nullptr, 0, 10));
  const WeightView none{w.view.data, DType::kF32, 3, 0};
  EXPECT_EQ(run(set(), {}, 1, none), (std::vector<float>{0, 0, 0}));
}

// One exact value of the contract's order: lanes, then the tree. Sums that round differently in any
// other order: lane j of the first group holds 1, of the second 2^-24.
TEST_P(GemmTest, TheOrderOfTheContract) {
  const std::int64_t k = 48;
  std::vector<float> x(k, 1.0F);
  std::vector<float> w = random_values(k, 91);
  const WeightView view{reinterpret_cast<const std::byte*>(w.data()), DType::kF32, 1, k};
  float lane[16];
  for (int j = 0; j < 16; ++j) lane[j] = (w[j] + w[j + 16]) + w[j + 32];  // x = 1: products exact
  for (int width = 8; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  EXPECT_EQ(run(set(), x, 1, view)[0], lane[0]);
}

TEST(GemmBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  for (const DType dtype : all_dtypes()) {
    const TestWeight w = make_weight(dtype, 23, 1280, 95);
    for (const std::int64_t t : {1, 4, 11}) {
      const std::vector<float> x = random_values(t * 1280, 96);
      expect_same_bits(run(cpu_table(Isa::kAvx2), x, t, w.view),
                       run(cpu_table(Isa::kAvx512), x, t, w.view), std::string(dtype_name(dtype)));
    }
  }
}

TEST(GemmReference, HandComputed) {
  const std::vector<float> w = {1, 2, 3, 4, 5, 6};   // [2, 3]
  const std::vector<float> x = {1, 0, -1, 2, 1, 0};  // [2, 3]
  const WeightView view{reinterpret_cast<const std::byte*>(w.data()), DType::kF32, 2, 3};
  EXPECT_EQ(run(reference_table(), x, 2, view), (std::vector<float>{-2, -2, 4, 13}));
}

TEST(GemmContract, ShapesAreChecked) {
  std::vector<float> f(64);
  const WeightView w{reinterpret_cast<const std::byte*>(f.data()), DType::kF32, 2, 8};
  EXPECT_DEATH(check_gemm(matrix<const float>(f.data(), 1, 7), w, matrix(f.data(), 1, 2)), "x=");
  const WeightView odd{w.data, DType::kQ4_0, 2, 8};
  EXPECT_DEATH(check_gemm(matrix<const float>(f.data(), 1, 8), odd, matrix(f.data(), 1, 2)),
               "q4_0");
}

}  // namespace
}  // namespace millrace::kernels::testing
