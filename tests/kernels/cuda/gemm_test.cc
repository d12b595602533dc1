#include "kernels/cuda/gemm.h"

#include "tests/kernels/cuda/gemm_support.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace::kernels::cuda::testing {
namespace {

struct Shape {
  std::int64_t tokens, rows, cols;
};

// y = x * w^T in f32 over dense x.
std::vector<float> run_f32(GemmPath path, const PackedWeight& w, const std::vector<float>& x,
                           std::int64_t tokens, std::optional<Spread> spread = {}) {
  const DeviceArray<BFloat16> device_x(to_bf16(x));
  const DeviceArray<float> y(static_cast<std::size_t>(tokens * w.rows), kNan);
  const std::int64_t chunks = (w.cols + kGemmChunk - 1) / kGemmChunk;
  const TestWorkspace workspace((tokens + 7) / 8 * gemm_tiles(w.rows), chunks);
  GemmTuning tuning{path, {}, 0};
  if (spread) tuning = {path, spread->spread, spread->tile_tokens};
  gemm(default_stream(),
       {device_matrix(device_x, tokens, w.cols), w,
        GemmOutput::store(matrix(y.data(), tokens, w.rows)), workspace.view(), tuning});
  EXPECT_TRUE(workspace.tickets_are_zero());
  return y.read();
}

class GemmTest : public ::testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, GemmTest, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return format.index == 0 ? "bf16" : "fp8"; });

// Any lost, doubled or misplaced product shows as a whole number.
TEST_P(GemmTest, IntegersAreExactInEveryTile) {
  for (const auto& [tokens, rows, cols] :
       {Shape{1, 1, 32}, {7, 64, 96}, {65, 200, 544}, {3, 72, 2720}, {130, 130, 160}}) {
    const std::vector<float> x = small_integers(tokens * cols, 1);
    const PackedOnDevice w =
        pack_on_device(GetParam(), scaled_rows(small_integers(rows * cols, 2), cols), rows, cols);
    std::vector<float> want;
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t n = 0; n < rows; ++n) {
        want.push_back(static_cast<float>(dot(&x[static_cast<std::size_t>(t * cols)],
                                              &w.values[static_cast<std::size_t>(n * cols)], cols)
                                              .sum));
      }
    }
    for (const GemmPath path : gemm_paths()) {
      for (const Spread& spread : all_spreads()) {
        const std::vector<float> got = run_f32(path, w.view, x, tokens, spread);
        ASSERT_EQ(got, want) << describe(path, GetParam()) << ' ' << describe(spread)
                             << fmt::format(" T={} N={} K={}", tokens, rows, cols);
      }
    }
  }
}

TEST_P(GemmTest, AgreesWithF64) {
  for (const auto& [tokens, rows, cols] :
       {Shape{1, 130, 2048}, {64, 96, 1504}, {300, 70, 256}, {5, 64, 32}}) {
    for (const float scale : {1e-3F, 30.0F}) {
      const std::vector<float> x = random_bf16(tokens * cols, 3, scale);
      const PackedOnDevice w = pack_on_device(
          GetParam(), scaled_rows(random_bf16(rows * cols, 4, 0.05F), cols), rows, cols);
      for (const GemmPath path : gemm_paths()) {
        const std::vector<float> got = run_f32(path, w.view, x, tokens);
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t n = 0; n < rows; ++n) {
            const Dot d = dot(&x[static_cast<std::size_t>(t * cols)],
                              &w.values[static_cast<std::size_t>(n * cols)], cols);
            ASSERT_NEAR(got[static_cast<std::size_t>(t * rows + n)], d.sum, dot_tolerance(d, cols))
                << describe(path, GetParam()) << ' ' << t << ' ' << n;
          }
        }
      }
    }
  }
}

// Contract C1: a row alone, first, last, in the middle, in any tile, however its chunks are spread.
TEST_P(GemmTest, BitsOfARowDependOnTheRowAlone) {
  constexpr std::int64_t kTokens = 150;
  constexpr std::int64_t kRows = 80;
  constexpr std::int64_t kCols = 1120;
  const std::vector<float> x = random_bf16(kTokens * kCols, 5);
  const PackedOnDevice w =
      pack_on_device(GetParam(), scaled_rows(random_bf16(kRows * kCols, 6), kCols), kRows, kCols);
  for (const GemmPath path : gemm_paths()) {
    const std::vector<float> all = run_f32(path, w.view, x, kTokens);
    for (const Spread& spread : all_spreads()) {
      const auto what = describe(path, GetParam()) + ' ' + describe(spread);
      const std::int64_t begin = spread.tile_tokens + static_cast<int>(spread.spread) * 2 + 1;
      for (const std::int64_t count : {1, 11}) {
        const std::vector<float> got =
            run_f32(path, w.view, rows_of(x, begin, count, kCols), count, spread);
        expect_same_bits(got, rows_of(all, begin, count, kRows), what);
      }
    }
    expect_same_bits(run_f32(path, w.view, x, kTokens, Spread{32, GemmSpread::kSplit}), all,
                     "whole batch, split");
  }
}

// The fp8 path multiplies exactly the values that unpack_weight shows.
TEST(GemmFormatsTest, Fp8IsBf16OverTheUnpackedValues) {
  constexpr std::int64_t kRows = 96;
  constexpr std::int64_t kCols = 672;
  std::vector<float> values = scaled_rows(random_bf16(kRows * kCols, 7, 0.3F), kCols);
  for (std::size_t i = 0; i < values.size(); i += 5) values[i] *= 0x1p-12F;  // subnormal in e4m3
  const PackedOnDevice fp8 = pack_on_device(WeightFormat::kFp8E4M3, values, kRows, kCols);
  const PackedOnDevice bf16 = pack_on_device(WeightFormat::kBf16, fp8.values, kRows, kCols);
  const std::vector<float> x = random_bf16(20 * kCols, 8);
  for (const GemmPath path : gemm_paths()) {
    expect_same_bits(run_f32(path, fp8.view, x, 20), run_f32(path, bf16.view, x, 20),
                     describe(path, WeightFormat::kFp8E4M3));
  }
}

// One multiplication in all four epilogues, into strided views of poisoned memory whose neighbours
// must stay as they are, from strided x between NaNs. An odd stride of y takes the narrow stores.
struct EpilogueRun {
  std::int64_t tokens, rows, cols, y_stride;
  GemmTuning tuning;
};

template <class T>
std::vector<T> run_epilogue(const EpilogueRun& run, GemmEpilogue epilogue, const PackedWeight& w,
                            const std::vector<float>& x, std::int64_t y_cols, T before, T outside) {
  std::vector<BFloat16> padded(static_cast<std::size_t>((run.tokens + 2) * (run.cols + 16)),
                               kBf16Nan);
  for (std::int64_t t = 0; t < run.tokens; ++t) {
    for (std::int64_t k = 0; k < run.cols; ++k) {
      padded[static_cast<std::size_t>((t + 1) * (run.cols + 16) + 8 + k)] =
          cuda::to_bf16(x[static_cast<std::size_t>(t * run.cols + k)]);
    }
  }
  const DeviceArray<BFloat16> device_x(padded);
  const auto view = device_matrix(device_x, run.tokens + 2, run.cols + 16)
                        .slice_rows(1, run.tokens)
                        .slice_cols(8, run.cols);
  std::vector<T> y(static_cast<std::size_t>((run.tokens + 1) * run.y_stride), outside);
  for (std::int64_t t = 0; t < run.tokens; ++t) {
    for (std::int64_t n = 0; n < y_cols; ++n)
      y[static_cast<std::size_t>(t * run.y_stride + n)] = before;
  }
  const DeviceArray<T> device_y(y);
  const TestWorkspace workspace((run.tokens + 7) / 8 * gemm_tiles(run.rows), 4);
  gemm(default_stream(), {view,
                          w,
                          {epilogue, device_y.data(), run.tokens, y_cols, run.y_stride},
                          workspace.view(),
                          run.tuning});
  const std::vector<T> got = device_y.read();
  std::vector<T> out;
  for (std::int64_t t = 0; t <= run.tokens; ++t) {
    for (std::int64_t n = 0; n < run.y_stride; ++n) {
      const T v = got[static_cast<std::size_t>(t * run.y_stride + n)];
      if (t < run.tokens && n < y_cols) {
        out.push_back(v);
      } else {
        EXPECT_EQ(v, outside) << "outside of y: " << t << ' ' << n;
      }
    }
  }
  return out;
}

TEST_P(GemmTest, EpiloguesOnStridedViews) {
  for (const GemmPath path : gemm_paths()) {
    for (const auto& [tokens, rows, cols] : {Shape{9, 80, 96}, {70, 48, 608}}) {
      const std::vector<float> x = random_bf16(tokens * cols, 9);
      const PackedOnDevice w = pack_on_device(GetParam(), random_bf16(rows * cols, 10), rows, cols);
      const std::vector<float> dots = run_f32(path, w.view, x, tokens);
      for (const std::int64_t gap : {16, 3}) {
        for (const Spread& spread : {Spread{64, GemmSpread::kWhole},
                                     {8, GemmSpread::kSplit},
                                     {16, GemmSpread::kNarrow},
                                     {96, GemmSpread::kWhole}}) {
          const EpilogueRun run{
              tokens, rows, cols, rows + gap, {path, spread.spread, spread.tile_tokens}};
          EXPECT_EQ(run_epilogue(run, GemmEpilogue::kStoreF32, w.view, x, rows, kNan, -7.0F), dots);
          std::vector<float> sums = dots;
          for (float& v : sums) v = 2.5F + v;
          EXPECT_EQ(run_epilogue(run, GemmEpilogue::kAddF32, w.view, x, rows, 2.5F, -7.0F), sums);
          EXPECT_EQ(run_epilogue(run, GemmEpilogue::kStoreBf16, w.view, x, rows, kBf16Nan,
                                 BFloat16{0x1234}),
                    to_bf16(dots));
          const std::vector<float> act = to_f32(run_epilogue(run, GemmEpilogue::kSwiGlu, w.view, x,
                                                             rows / 2, kBf16Nan, BFloat16{0x1234}));
          for (std::int64_t t = 0; t < tokens; ++t) {
            for (std::int64_t f = 0; f < rows / 2; ++f) {
              const double gate = dots[static_cast<std::size_t>(t * rows + gate_row(f))];
              const double up = dots[static_cast<std::size_t>(t * rows + up_row(f))];
              const double want = gate / (1 + std::exp(-gate)) * up;
              ASSERT_NEAR(act[static_cast<std::size_t>(t * rows / 2 + f)], want,
                          (kBf16Half + 8 * kF32Half) * std::fabs(want) + 0x1p-133);
            }
          }
        }
      }
    }
  }
}

TEST_P(GemmTest, NotANumberStaysInItsRow) {
  constexpr std::int64_t kTokens = 20;
  constexpr std::int64_t kCols = 96;
  constexpr std::int64_t kRows = 70;
  std::vector<float> x = random_bf16(kTokens * kCols, 11);
  const PackedOnDevice w = pack_on_device(GetParam(), random_bf16(kRows * kCols, 12), kRows, kCols);
  for (const GemmPath path : gemm_paths()) {
    const std::vector<float> clean = run_f32(path, w.view, x, kTokens);
    std::vector<float> dirty = x;
    dirty[0] = kNan;  // where a copy that ignores the edges of x would read
    dirty[5 * kCols + 90] = kNan;
    dirty[17 * kCols] = std::numeric_limits<float>::infinity();
    const std::vector<float> got = run_f32(path, w.view, dirty, kTokens);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const auto row = rows_of(got, t, 1, kRows);
      if (t == 0 || t == 5 || t == 17) {
        for (const float v : row) ASSERT_FALSE(std::isfinite(v)) << t;
      } else {
        expect_same_bits(row, rows_of(clean, t, 1, kRows), fmt::format("row {}", t));
      }
    }
  }
}

TEST(GemmLaunchTest, NoTokensIsNoWork) {
  const PackedOnDevice w = pack_on_device(WeightFormat::kBf16, random_bf16(32 * 32, 13), 32, 32);
  gemm(default_stream(), {{nullptr, {0, 32}, 32},
                          w.view,
                          GemmOutput::store(MatrixView<float>{nullptr, {0, 32}, 32}),
                          {},
                          {}});
}

TEST(GemmLaunchTest, ShapesAreChecked) {
  const PackedOnDevice w = pack_on_device(WeightFormat::kBf16, random_bf16(32 * 32, 13), 32, 32);
  const DeviceArray<BFloat16> x(64, BFloat16{});
  const DeviceArray<float> y(64, 0.0F);
  const auto run = [&](std::int64_t cols, std::int64_t y_cols, std::int64_t shift) {
    gemm(default_stream(), {matrix<const BFloat16>(x.data() + shift, 1, cols),
                            w.view,
                            GemmOutput::store(matrix(y.data(), 1, y_cols)),
                            {},
                            {}});
  };
  EXPECT_DEATH(run(16, 32, 0), "w=\\[32, 32\\]|w=");
  EXPECT_DEATH(run(32, 31, 0), "columns");
  EXPECT_DEATH(run(32, 32, 1), "aligned");
}

TEST(GemmPlanTest, WorkspacesHoldEveryPlanUpToTheirTokens) {
  for (const std::int64_t groups : {1, 64}) {
    for (const std::int64_t cols : {2048, 11776}) {
      const GemmShape shape{WeightFormat::kBf16, 700, groups, 2048, cols};
      const GemmWorkspaceSize size = plan_workspace(shape, 132);
      std::int64_t splits = 0;
      for (std::int64_t t = 1; t <= shape.tokens; ++t) {
        GemmShape s = shape;
        s.tokens = t;
        const GemmPlan plan = plan_gemm(s, 132, {});
        ASSERT_LE(plan.partial_bytes, size.partial_bytes) << t;
        ASSERT_LE(plan.ticket_count, size.ticket_count) << t;
        splits += plan.spread == GemmSpread::kSplit ? 1 : 0;
      }
      if (groups == 1) {
        EXPECT_GT(splits, 0);
      }
      EXPECT_LT(size.partial_bytes, 64 << 20);
    }
  }
}

TEST(GemmPlanTest, WorstCaseTilesOfGroups) {
  const GemmTuning whole_8{{}, GemmSpread::kWhole, 8};
  // 10 rows in 4 groups, tiles of 8: at most 7 + 1 + 1 + 1 rows in four tiles, or 9 + 1 in three.
  EXPECT_EQ(plan_gemm({WeightFormat::kBf16, 10, 4, 64, 64}, 132, whole_8).tiles, 4);
  EXPECT_EQ(plan_gemm({WeightFormat::kBf16, 12, 4, 64, 64}, 132, whole_8).tiles, 5);
  EXPECT_EQ(plan_gemm({WeightFormat::kBf16, 2, 4, 64, 64}, 132, whole_8).tiles, 2);
}

// The shapes of a decode step of one token read their weights with all multiprocessors.
TEST(GemmPlanTest, OneTokenGivesEveryMultiprocessorWork) {
  for (const std::int64_t rows : {2048, 3072, 6144}) {
    const GemmPlan plan = plan_gemm({WeightFormat::kBf16, 1, 1, rows, 2048}, 132, {});
    EXPECT_EQ(plan.spread, GemmSpread::kNarrow);
    EXPECT_GE(plan.units(), 128);
  }
  EXPECT_EQ(plan_gemm({WeightFormat::kBf16, 1, 1, 65536, 2048}, 132, {}).spread,
            GemmSpread::kWhole);
}

#if defined(MILLRACE_CUDA_EMULATED)
// Blocks and threads in any order, on any number of multiprocessors: the same bits.
TEST_P(GemmTest, OrderOfBlocksAndThreadsDoesNotMatter) {
  constexpr std::int64_t kCols = 1056;
  const std::vector<float> x = random_bf16(24 * kCols, 14);
  const PackedOnDevice w = pack_on_device(GetParam(), random_bf16(140 * kCols, 15), 140, kCols);
  for (const GemmPath path : gemm_paths()) {
    const std::vector<float> want = run_f32(path, w.view, x, 24);
    for (const auto order : {cuda_emulator::Order::kReverse, cuda_emulator::Order::kShuffled}) {
      cuda_emulator::set_order(order, 5);
      cuda_emulator::set_sm_count(1);
      for (const Spread& spread :
           {Spread{16, GemmSpread::kSplit}, {8, GemmSpread::kWhole}, {8, GemmSpread::kNarrow}}) {
        expect_same_bits(run_f32(path, w.view, x, 24, spread), want, describe(spread));
      }
      cuda_emulator::reset();
    }
  }
}
#endif

}  // namespace
}  // namespace millrace::kernels::cuda::testing
