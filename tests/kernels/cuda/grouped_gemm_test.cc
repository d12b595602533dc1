#include "kernels/cuda/grouped_gemm.h"

#include <numeric>

#include "tests/kernels/cuda/gemm_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

constexpr std::int64_t kGroups = 5;

struct Grouped {
  std::vector<std::int32_t> offsets;
  std::vector<std::int32_t> x_rows;  // empty: x is grouped
};

std::vector<float> run(GemmPath path, const PackedWeight& w, const std::vector<float>& x,
                       const Grouped& groups, std::int64_t max_rows, GemmTuning tuning = {},
                       float before = kNan) {
  tuning.path = path;
  const DeviceArray<BFloat16> device_x(to_bf16(x));
  const DeviceArray<std::int32_t> offsets(groups.offsets);
  const DeviceArray<std::int32_t> x_rows(groups.x_rows);
  const DeviceArray<float> y(static_cast<std::size_t>(max_rows * w.rows), before);
  const TestWorkspace workspace(
      (max_rows / 8 + static_cast<std::int64_t>(groups.offsets.size())) * gemm_tiles(w.rows), 4);
  const auto experts = static_cast<std::int32_t>(groups.offsets.size()) - 1;
  grouped_gemm(
      default_stream(),
      {device_matrix(device_x, static_cast<std::int64_t>(x.size()) / w.cols, w.cols),
       groups.x_rows.empty() ? nullptr : x_rows.data(), offsets.data(), experts, max_rows, w,
       GemmOutput::store(matrix(y.data(), max_rows, w.rows)), workspace.view(), tuning});
  EXPECT_TRUE(workspace.tickets_are_zero());
  return y.read();
}

class GroupedGemmTest : public ::testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, GroupedGemmTest, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return format.index == 0 ? "bf16" : "fp8"; });

const std::vector<std::int32_t> kSplits[] = {
    {0, 3, 3, 10, 11, 33},    // an empty group in the middle
    {0, 0, 0, 0, 0, 41},      // the last takes all
    {0, 41, 41, 41, 41, 41},  // the first takes all
    {0, 1, 2, 3, 4, 5},      {0, 0, 0, 0, 0, 0}, {0, 0, 17, 17, 49, 49},
};

// Exact on whole numbers: each row meets its own group's weight, in every tile; rows beyond the
// last group are not touched though the launch allows for more of them.
TEST_P(GroupedGemmTest, IntegersMeetTheirOwnGroup) {
  constexpr std::int64_t kRows = 80;
  constexpr std::int64_t kCols = 608;
  const PackedOnDevice w =
      pack_on_device(GetParam(), scaled_rows(small_integers(kGroups * kRows * kCols, 1), kCols),
                     kRows, kCols, kGroups);
  for (const auto& offsets : kSplits) {
    const std::int64_t rows = offsets.back();
    const std::int64_t max_rows = rows + 9;
    const std::vector<float> x = small_integers(max_rows * kCols, 2);
    std::vector<float> want(static_cast<std::size_t>(max_rows * kRows), -7.0F);
    for (std::size_t g = 0; g < kGroups; ++g) {
      for (std::int64_t r = offsets[g]; r < offsets[g + 1]; ++r) {
        for (std::int64_t n = 0; n < kRows; ++n) {
          const auto row = static_cast<std::size_t>(static_cast<std::int64_t>(g) * kRows + n);
          want[static_cast<std::size_t>(r * kRows + n)] = static_cast<float>(
              dot(&x[static_cast<std::size_t>(r * kCols)], &w.values[row * kCols], kCols).sum);
        }
      }
    }
    for (const GemmPath path : gemm_paths()) {
      for (const Spread& spread : all_spreads()) {
        const std::vector<float> got = run(path, w.view, x, {offsets, {}}, max_rows,
                                           {{}, spread.spread, spread.tile_tokens}, -7.0F);
        ASSERT_EQ(got, want) << describe(path, GetParam()) << ' ' << describe(spread) << " rows "
                             << rows;
      }
    }
  }
}

// The bits of gemm for the same row and weight, through gathered rows too.
TEST_P(GroupedGemmTest, RowsHaveTheBitsOfGemm) {
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kCols = 1056;
  constexpr std::int64_t kTokens = 12;
  const PackedOnDevice w =
      pack_on_device(GetParam(), random_bf16(kGroups * kRows * kCols, 3), kRows, kCols, kGroups);
  const std::vector<float> x = random_bf16(kTokens * kCols, 4);
  for (const auto& offsets : kSplits) {
    Grouped groups{offsets, {}};
    for (std::int32_t r = 0; r < offsets.back(); ++r) {
      groups.x_rows.push_back(static_cast<std::int32_t>(r * 7 % kTokens));
    }
    if (groups.x_rows.empty()) continue;
    for (const GemmPath path : gemm_paths()) {
      const std::vector<float> got = run(path, w.view, x, groups, offsets.back());
      for (std::size_t g = 0; g < kGroups; ++g) {
        const std::int64_t begin = offsets[g];
        const std::int64_t count = offsets[g + 1] - begin;
        if (count == 0) continue;
        std::vector<float> gathered;
        for (std::int64_t r = begin; r < begin + count; ++r) {
          const std::vector<float> row =
              rows_of(x, groups.x_rows[static_cast<std::size_t>(r)], 1, kCols);
          gathered.insert(gathered.end(), row.begin(), row.end());
        }
        const DeviceArray<BFloat16> device_x(to_bf16(gathered));
        const DeviceArray<float> y(static_cast<std::size_t>(count * kRows), kNan);
        PackedWeight weight = w.view;
        weight.data += static_cast<std::int64_t>(g) * weight.bytes();
        gemm(default_stream(), {device_matrix(device_x, count, kCols),
                                weight,
                                GemmOutput::store(matrix(y.data(), count, kRows)),
                                {},
                                {path, {}, 0}});
        expect_same_bits(rows_of(got, begin, count, kRows), y.read(),
                         fmt::format("{} group {}", describe(path, GetParam()), g));
      }
    }
  }
}

// Both products of an expert as the engine runs them: gate and up in one weight, gathered tokens.
TEST_P(GroupedGemmTest, ExpertsOfAStep) {
  constexpr std::int64_t kHidden = 96;
  constexpr std::int64_t kWidth = 32;  // F
  constexpr std::int64_t kTokens = 6;
  const Grouped groups{{0, 4, 4, 9, 12, 12}, {0, 1, 3, 5, 0, 1, 2, 4, 5, 2, 3, 4}};
  const std::int64_t rows = groups.offsets.back();
  const PackedOnDevice w13 = pack_on_device(
      GetParam(), scaled_rows(random_bf16(kGroups * 2 * kWidth * kHidden, 5, 0.3F), kHidden),
      2 * kWidth, kHidden, kGroups);
  const PackedOnDevice w2 = pack_on_device(
      GetParam(), random_bf16(kGroups * kHidden * kWidth, 6, 0.3F), kHidden, kWidth, kGroups);
  const std::vector<float> x = random_bf16(kTokens * kHidden, 7);
  const DeviceArray<BFloat16> device_x(to_bf16(x));
  const DeviceArray<std::int32_t> offsets(groups.offsets);
  const DeviceArray<std::int32_t> x_rows(groups.x_rows);
  for (const GemmPath path : gemm_paths()) {
    const DeviceArray<BFloat16> act(static_cast<std::size_t>(rows * kWidth), kBf16Nan);
    const DeviceArray<BFloat16> out(static_cast<std::size_t>(rows * kHidden), kBf16Nan);
    grouped_gemm(default_stream(), {device_matrix(device_x, kTokens, kHidden),
                                    x_rows.data(),
                                    offsets.data(),
                                    kGroups,
                                    rows,
                                    w13.view,
                                    GemmOutput::swiglu(matrix(act.data(), rows, kWidth)),
                                    {},
                                    {path, {}, 0}});
    grouped_gemm(default_stream(), {device_matrix(act, rows, kWidth),
                                    nullptr,
                                    offsets.data(),
                                    kGroups,
                                    rows,
                                    w2.view,
                                    GemmOutput::store(matrix(out.data(), rows, kHidden)),
                                    {},
                                    {path, {}, 0}});
    const std::vector<float> h = to_f32(act.read());
    const std::vector<float> y = to_f32(out.read());
    for (std::size_t g = 0; g < kGroups; ++g) {
      const float* up_gate = &w13.values[g * 2 * kWidth * kHidden];
      const float* down = &w2.values[g * kHidden * kWidth];
      for (std::int64_t r = groups.offsets[g]; r < groups.offsets[g + 1]; ++r) {
        const float* token =
            &x[static_cast<std::size_t>(groups.x_rows[static_cast<std::size_t>(r)] * kHidden)];
        for (std::int64_t f = 0; f < kWidth; ++f) {
          const Dot gate = dot(token, up_gate + gate_row(f) * kHidden, kHidden);
          const Dot up = dot(token, up_gate + up_row(f) * kHidden, kHidden);
          const double silu = gate.sum / (1 + std::exp(-gate.sum));
          // The slope of silu is at most 1.1.
          const double tolerance = 1.1 * dot_tolerance(gate, kHidden) * std::fabs(up.sum) +
                                   dot_tolerance(up, kHidden) * std::fabs(silu) +
                                   (kBf16Half + 8 * kF32Half) * std::fabs(silu * up.sum);
          ASSERT_NEAR(h[static_cast<std::size_t>(r * kWidth + f)], silu * up.sum,
                      tolerance + 0x1p-133);
        }
        for (std::int64_t n = 0; n < kHidden; ++n) {
          const Dot d = dot(&h[static_cast<std::size_t>(r * kWidth)], down + n * kWidth, kWidth);
          ASSERT_NEAR(y[static_cast<std::size_t>(r * kHidden + n)], d.sum,
                      dot_tolerance(d, kWidth) + kBf16Half * std::fabs(d.sum) + 0x1p-133);
        }
      }
    }
  }
}

// Hundreds of tiles of one group are spread over all blocks: none walks more than its share.
TEST_P(GroupedGemmTest, OneGroupTakesAllOfManyRows) {
  constexpr std::int64_t kRows = 128;
  constexpr std::int64_t kCols = 64;
  constexpr std::int64_t kMany = 700;
  const PackedOnDevice w =
      pack_on_device(GetParam(), small_integers(kGroups * kRows * kCols, 8), kRows, kCols, kGroups);
  const std::vector<float> x = small_integers(kMany * kCols, 9);
  for (const GemmPath path : gemm_paths()) {
    for (const int tile : {8, 128}) {
      const std::vector<float> got =
          run(path, w.view, x, {{0, 0, 0, kMany, kMany, kMany}, {}}, kMany, {{}, {}, tile});
      for (std::int64_t r = 0; r < kMany; ++r) {
        for (std::int64_t n = 0; n < kRows; ++n) {
          const float* row = &w.values[static_cast<std::size_t>((2 * kRows + n) * kCols)];
          ASSERT_EQ(got[static_cast<std::size_t>(r * kRows + n)],
                    dot(&x[static_cast<std::size_t>(r * kCols)], row, kCols).sum);
        }
      }
    }
  }
}

// More groups than a warp has lanes: the list of tiles is made in several turns.
TEST_P(GroupedGemmTest, MoreGroupsThanLanes) {
  constexpr std::int64_t kMany = 70;
  constexpr std::int64_t kRows = 20;
  constexpr std::int64_t kCols = 32;
  const PackedOnDevice w =
      pack_on_device(GetParam(), small_integers(kMany * kRows * kCols, 12), kRows, kCols, kMany);
  std::vector<std::int32_t> offsets = {0};
  for (std::int32_t g = 0; g < kMany; ++g) {
    offsets.push_back(offsets.back() + (g % 3 == 0 ? 0 : g % 11));
  }
  const std::int64_t rows = offsets.back();
  const std::vector<float> x = small_integers(rows * kCols, 13);
  std::vector<float> want;
  for (std::size_t g = 0; g < kMany; ++g) {
    for (std::int64_t r = offsets[g]; r < offsets[g + 1]; ++r) {
      for (std::int64_t n = 0; n < kRows; ++n) {
        const auto row = static_cast<std::size_t>((static_cast<std::int64_t>(g) * kRows + n));
        want.push_back(static_cast<float>(
            dot(&x[static_cast<std::size_t>(r * kCols)], &w.values[row * kCols], kCols).sum));
      }
    }
  }
  for (const GemmPath path : gemm_paths()) {
    for (const int tile : {0, 8}) {
      ASSERT_EQ(run(path, w.view, x, {offsets, {}}, rows, {{}, GemmSpread::kWhole, tile}), want);
    }
  }
}

// Weights of groups without rows are full of NaN, as unused memory may be.
TEST_P(GroupedGemmTest, EmptyGroupsAreNotRead) {
  constexpr std::int64_t kRows = 100;  // the last tile of a group is padded
  constexpr std::int64_t kCols = 96;
  std::vector<float> values = random_bf16(kGroups * kRows * kCols, 10);
  const PackedOnDevice w = pack_on_device(GetParam(), values, kRows, kCols, kGroups);
  std::vector<std::byte> bytes = w.bytes.read();
  const auto size = static_cast<std::size_t>(w.view.bytes());
  for (const std::size_t g : {0U, 2U, 4U}) {
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(g * size), size, std::byte{0xff});
  }
  const DeviceArray<std::byte> poisoned_bytes(bytes);
  PackedWeight poisoned_view = w.view;
  poisoned_view.data = poisoned_bytes.data();
  const std::vector<float> x = random_bf16(20 * kCols, 11);
  const Grouped groups{{0, 0, 9, 9, 20, 20}, {}};
  for (const GemmPath path : gemm_paths()) {
    expect_same_bits(run(path, poisoned_view, x, groups, 20), run(path, w.view, x, groups, 20),
                     describe(path, GetParam()));
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
