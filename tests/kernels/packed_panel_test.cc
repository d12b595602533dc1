// What is special to panels (kernels/packed_gemm.h): groups of 16 tokens or of one, ranges of K,
// rows that do not follow each other. The rest is packed_gemm_test.cc's, which runs every set's.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/buffer.h"
#include "kernels/dtype_name.h"
#include "tests/kernels/packed_support.h"

namespace millrace::kernels::testing {
namespace {

std::vector<const PackedKernels*> kernels_with_panels() {
  std::vector<const PackedKernels*> kernels = kernels_here();
  std::erase_if(kernels,
                [](const PackedKernels* k) { return k->panel_of(DType::kP6_K) == nullptr; });
  return kernels;
}

class PackedPanelTest : public PackedKernelsTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, PackedPanelTest, ::testing::ValuesIn(kernels_with_panels()),
                         kernels_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PackedPanelTest);

std::vector<float> rows_of(const std::vector<float>& all, std::int64_t begin, std::int64_t end,
                           std::int64_t width) {
  return {all.begin() + begin * width, all.begin() + end * width};
}

// Group by group, with the last one full or not; ranges of K of 16 blocks, the last one shorter, of
// any number of steps.
TEST_P(PackedPanelTest, HasTheBitsOfTheDefinition) {
  constexpr std::int64_t n = 32, most = 56;
  for (const DType dtype : packable_dtypes()) {
    for (const std::int64_t k : {32, 64, 96, 160, 256, 512, 544, 768, 1120, 1280}) {
      if (!row_fits(dtype, k)) continue;
      const TestWeight w = make_packed(make_weight(dtype, n, k, 11));
      const std::vector<float> x = random_values(most * k, 12, 3.0F);
      const std::vector<float> want = reference(x, most, w.view);
      for (const std::int64_t t : {8, 15, 16, 17, 23, 24, 31, 32, 33, 56}) {
        expect_same_bits(run(x, t, w.view), rows_of(want, 0, t, n),
                         fmt::format("{} k={} t={}", dtype_name(dtype), k, t));
      }
    }
  }
}

// More tokens than the sums of one portion hold, and few blocks, so that only that is the limit.
TEST_P(PackedPanelTest, ManyTokens) {
  constexpr std::int64_t n = 16, most = 600;
  for (const auto& [dtype, k] : {std::pair(DType::kQ4_0, 64), std::pair(DType::kQ4_K, 256)}) {
    const TestWeight w = make_packed(make_weight(dtype, n, k, 21));
    const std::vector<float> x = random_values(most * k, 22);
    const std::vector<float> want = reference(x, most, w.view);
    for (const std::int64_t t : {255, 256, 257, 264, 512, 600}) {
      expect_same_bits(run(x, t, w.view), rows_of(want, 0, t, n),
                       fmt::format("{} t={}", dtype_name(dtype), t));
    }
  }
}

// Rows of which one group, or none, fits beside the other things in a cache.
TEST_P(PackedPanelTest, LongRows) {
  constexpr std::int64_t n = 16, t = 24;
  for (const std::int64_t k : {32768, 33024}) {
    const TestWeight w = make_packed(make_weight(DType::kQ6_K, n, k, 31));
    const std::vector<float> x = random_values(t * k, 32);
    expect_same_bits(run(x, t, w.view), reference(x, t, w.view), fmt::format("k={}", k));
  }
}

// Nothing beyond the rows is read and nothing beside them written: both end where memory does.
TEST_P(PackedPanelTest, KeepsToItsRows) {
  constexpr std::int64_t k = 256, n = 48;
  const TestWeight w = make_packed(make_weight(DType::kQ5_K, n, k, 41));
  for (const std::int64_t t : {8, 16, 23, 32}) {
    const std::vector<float> x = random_values(t * k, 42);
    const std::vector<float> want = reference(x, t, w.view);
    const auto bytes = static_cast<std::size_t>(t * k / kQuantBlock) * sizeof(QuantizedBlock);
    ASSERT_EQ(bytes % kBufferAlignment, 0U);
    const GuardedBytes workspace(bytes);
    const GuardedBytes out(want.size() * sizeof(float));
    auto* y = reinterpret_cast<float*>(out.data());
    packed_gemm(kernels(), {nullptr, {workspace.data(), bytes}}, matrix(x.data(), t, k), w.view,
                Accumulate::kStore, matrix(y, t, n));
    expect_same_bits({y, y + want.size()}, want, fmt::format("t={}", t));
  }
}

// A token that is no number makes its own answers none, in full groups and others.
TEST_P(PackedPanelTest, OneTokensNanStaysItsOwn) {
  constexpr std::int64_t k = 1024, n = 16, t = 26;
  for (const DType dtype : packable_dtypes()) {
    const TestWeight w = make_packed(make_weight(dtype, n, k, 51));
    std::vector<float> x = random_values(t * k, 52);
    const std::vector<float> clean = run(x, t, w.view);
    for (const std::int64_t bad : {0, 7, 15, 16, 25}) {
      std::vector<float> sick = x;
      sick[static_cast<std::size_t>(bad * k + 700)] = kNan;
      const std::vector<float> y = run(sick, t, w.view);
      for (std::int64_t i = 0; i < t; ++i) {
        if (i != bad) {
          expect_same_bits(rows_of(y, i, i + 1, n), rows_of(clean, i, i + 1, n), "a neighbour");
          continue;
        }
        for (std::int64_t c = 0; c < n; ++c) {
          EXPECT_TRUE(std::isnan(y[static_cast<std::size_t>(i * n + c)]));
        }
      }
    }
  }
}

// Experts that take rows in any order, in groups that are full, not full and none; shares of
// threads that end inside of an expert; portions of rows.
TEST_P(PackedPanelTest, GroupedRowsInAnyOrder) {
  constexpr std::int64_t k = 768, n = 80, rows = 90, sources = 37;
  const std::vector<std::int64_t> offsets = {0, 40, 47, 47, 63, 90};
  std::vector<std::int32_t> from;
  for (std::int32_t r = 0; r < rows; ++r) from.push_back(r * 11 % sources);
  const std::vector<float> x = random_values(sources * k, 61);
  for (const DType dtype : {DType::kQ4_0, DType::kQ6_K}) {
    std::vector<TestWeight> experts;
    std::vector<WeightView> views;
    for (std::uint32_t e = 0; e + 1 < offsets.size(); ++e) {
      experts.push_back(make_packed(make_weight(dtype, n, k, 62 + e)));
      views.push_back(experts.back().view);
    }
    std::vector<float> want = poisoned(rows * n);
    reference_table().grouped_gemm(
        {}, {matrix(x.data(), sources, k), from, offsets, views, matrix(want.data(), rows, n)});
    for (const int threads : {1, 2, 3, 5}) {
      for (const std::size_t bytes : {std::size_t{1} << 20, 20 * k / 32 * sizeof(QuantizedBlock)}) {
        ThreadPool pool(threads);
        Buffer workspace(bytes);
        std::vector<float> y = poisoned(rows * n);
        packed_grouped_gemm(
            kernels(), {&pool, {workspace.data(), bytes}},
            {matrix(x.data(), sources, k), from, offsets, views, matrix(y.data(), rows, n)});
        expect_same_bits(y, want, fmt::format("{} {} threads", dtype_name(dtype), threads));
      }
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::testing
