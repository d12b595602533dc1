#include "kernels/grouped_gemm.h"

#include "kernels/dtype_name.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class GroupedGemmTest : public EachSet {};
MILLRACE_TEST_EACH_SET(GroupedGemmTest);

constexpr std::int64_t kK = 256;
constexpr std::int64_t kN = 37;

struct Experts {
  std::vector<TestWeight> owned;
  std::vector<WeightView> views;
};

Experts make_experts(DType dtype, int count) {
  Experts e;
  for (int i = 0; i < count; ++i) {
    e.owned.push_back(make_weight(dtype, kN, kK, 100 + static_cast<std::uint32_t>(i)));
    e.views.push_back(e.owned.back().view);
  }
  return e;
}

// Every row is what gemm gives for that row alone, to the bit, whatever the groups: empty experts,
// one expert taking all, single rows.
TEST_P(GroupedGemmTest, RowsHaveTheBitsOfGemm) {
  const std::vector<std::vector<std::int64_t>> splits = {
      {0, 3, 3, 10, 11}, {0, 0, 0, 0, 70}, {0, 70, 70, 70, 70}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ4_0, DType::kQ6_K}) {
    const Experts experts = make_experts(dtype, 4);
    for (const auto& offsets : splits) {
      const std::int64_t rows = offsets.back();
      const std::vector<float> x = random_values(rows * kK, 1);
      std::vector<float> want = poisoned(rows * kN);
      for (std::size_t e = 0; e < 4; ++e) {
        for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
          set().gemm({}, matrix(x.data() + r * kK, 1, kK), experts.views[e], Accumulate::kStore,
                     matrix(want.data() + r * kN, 1, kN));
        }
      }
      for (const int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        std::vector<float> y = poisoned(rows * kN);
        set().grouped_gemm(
            {&pool},
            {matrix(x.data(), rows, kK), {}, offsets, experts.views, matrix(y.data(), rows, kN)});
        expect_same_bits(y, want, std::string(dtype_name(dtype)));
      }
    }
  }
}

TEST_P(GroupedGemmTest, IndirectRowsEqualGatheredRows) {
  const Experts experts = make_experts(DType::kBF16, 3);
  const std::vector<std::int64_t> offsets = {0, 5, 5, 9};
  const std::vector<std::int32_t> from = {6, 0, 3, 3, 1, 6, 2, 0, 5};
  const std::vector<float> x = random_values(7 * kK, 2);
  std::vector<float> gathered;
  for (const std::int32_t r : from) gathered.insert(gathered.end(), &x[r * kK], &x[r * kK] + kK);
  std::vector<float> want = poisoned(9 * kN);
  std::vector<float> got = poisoned(9 * kN);
  set().grouped_gemm({}, {matrix<const float>(gathered.data(), 9, kK),
                          {},
                          offsets,
                          experts.views,
                          matrix(want.data(), 9, kN)});
  set().grouped_gemm({}, {matrix<const float>(x.data(), 7, kK), from, offsets, experts.views,
                          matrix(got.data(), 9, kN)});
  expect_same_bits(got, want, "indirect");
}

TEST_P(GroupedGemmTest, AnExpertWithoutRowsIsNeverRead) {
  Experts experts = make_experts(DType::kF32, 2);
  experts.views[1] = {reinterpret_cast<const std::byte*>(16), DType::kQ8_0, 1, 32};
  const std::vector<std::int64_t> offsets = {0, 1, 1};
  const std::vector<float> x = random_values(kK, 3);
  std::vector<float> y = poisoned(kN);
  set().grouped_gemm(
      {},
      {matrix<const float>(x.data(), 1, kK), {}, offsets, experts.views, matrix(y.data(), 1, kN)});
  for (const float v : y) EXPECT_TRUE(std::isfinite(v));
}

TEST(GroupedGemmReference, EachGroupMeetsItsOwnWeight) {
  const std::vector<float> w = {1, 10, 100};  // three experts of [1, 1]
  std::vector<WeightView> views;
  for (const float& v : w)
    views.push_back({reinterpret_cast<const std::byte*>(&v), DType::kF32, 1, 1});
  const std::vector<float> x = {1, 2, 3, 4};
  const std::vector<std::int64_t> offsets = {0, 1, 3, 4};
  std::vector<float> y = poisoned(4);
  reference_table().grouped_gemm(
      {}, {matrix<const float>(x.data(), 4, 1), {}, offsets, views, matrix(y.data(), 4, 1)});
  EXPECT_EQ(y, (std::vector<float>{1, 20, 30, 400}));
}

TEST(GroupedGemmContract, OffsetsAreChecked) {
  std::vector<float> f(4);
  const std::vector<WeightView> views(
      2, {reinterpret_cast<const std::byte*>(f.data()), DType::kF32, 1, 1});
  const std::vector<std::int64_t> descending = {0, 2, 1};
  EXPECT_DEATH(
      check_grouped_gemm(
          {matrix<const float>(f.data(), 4, 1), {}, descending, views, matrix(f.data(), 4, 1)}),
      "offsets");
}

}  // namespace
}  // namespace millrace::kernels::testing
