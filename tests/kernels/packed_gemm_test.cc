#include "kernels/packed_gemm.h"

#include <fmt/format.h>

#include "kernels/buffer.h"
#include "kernels/dtype_name.h"
#include "tests/kernels/packed_support.h"

namespace millrace::kernels::testing {
namespace {

class PackedGemmTest : public PackedKernelsTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, PackedGemmTest, ::testing::ValuesIn(kernels_here()), kernels_name);

TEST_P(PackedGemmTest, HasTheBitsOfTheDefinition) {
  for (const DType dtype : packable_dtypes()) {
    for (const std::int64_t k : {32, 96, 256, 1536}) {
      if (!row_fits(dtype, k)) continue;
      for (const std::int64_t n : {16, 48}) {
        const TestWeight w = make_packed(make_weight(dtype, n, k, 11));
        for (const std::int64_t t : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 21}) {
          const std::vector<float> x = random_values(t * k, 12, 3.0F);
          const std::vector<float> want = reference(x, t, w.view);
          const std::string what = fmt::format("{} k={} n={} t={}", dtype_name(dtype), k, n, t);
          if (fused()) {
            expect_same_bits(run(x, t, w.view), want, what);
          } else {
            expect_close(run(x, t, w.view), want, 1e-5, 1e-4, what);
          }
        }
      }
    }
  }
}

// Each activation is off by at most half a step of its block, each step of the sum by one rounding
// of a partial sum, which is at most the sum of magnitudes; scales and minima are within a small
// multiple of the block's largest weight.
TEST_P(PackedGemmTest, IsCloseToTheExactProduct) {
  constexpr std::int64_t k = 1024, n = 32, t = 5;
  for (const DType dtype : packable_dtypes()) {
    const TestWeight w = make_packed(make_weight(dtype, n, k, 21));
    const std::vector<float> x = random_values(t * k, 22);
    const std::vector<float> y = run(x, t, w.view);
    double worst = 0;
    for (std::int64_t i = 0; i < t; ++i) {
      for (std::int64_t row = 0; row < n; ++row) {
        double dot = 0, rounding = 0, magnitude = 0;
        for (std::int64_t b = 0; b < k; b += 32) {
          double most_x = 0, most_w = 0, sum_w = 0, sum_x = 0;
          for (std::int64_t j = b; j < b + 32; ++j) {
            const double xv = x[static_cast<std::size_t>(i * k + j)];
            const double wv = w.values[static_cast<std::size_t>(row * k + j)];
            dot += xv * wv;
            most_x = std::max(most_x, std::fabs(xv));
            most_w = std::max(most_w, std::fabs(wv));
            sum_w += std::fabs(wv);
            sum_x += std::fabs(xv);
          }
          rounding += 0.5001 * most_x / 127 * sum_w;
          magnitude += 7 * most_w * sum_x;
        }
        const double bound = rounding + kEps * (static_cast<double>(k) / 16 + 4) * magnitude;
        const double off = std::fabs(y[static_cast<std::size_t>(i * n + row)] - dot);
        ASSERT_LE(off, bound) << dtype_name(dtype) << " t=" << i << " n=" << row;
        worst = std::max(worst, off / bound);
      }
    }
    EXPECT_GT(worst, 1e-3) << dtype_name(dtype) << ": the bound says nothing";
  }
}

// The largest sums of products of either sign: 16-bit steps must not saturate on the way.
TEST_P(PackedGemmTest, ExtremesDoNotSaturate) {
  constexpr std::int64_t k = 256;
  for (const DType dtype : packable_dtypes()) {
    for (const int fill : {0x00, 0x7f, 0x80, 0xff}) {
      TestWeight source = make_weight(dtype, 16, k, 31);
      // Quants only: scales of 32-value types lead the block, those of K types stay as they are.
      const std::int64_t block = block_bytes(dtype);
      const std::int64_t begin = dtype == DType::kQ6_K ? 0 : dtype == DType::kQ4_1 ? 4 : 2;
      const std::int64_t from = block_values(dtype) == 256 && dtype != DType::kQ6_K ? 16 : begin;
      const std::int64_t to = dtype == DType::kQ6_K ? 192 : block;
      for (std::int64_t at = 0; at < source.view.bytes(); at += block) {
        std::memset(source.bytes->data() + at + from, fill, static_cast<std::size_t>(to - from));
      }
      const TestWeight w = make_packed(source);
      for (const float sign : {1.0F, -1.0F}) {
        std::vector<float> x(2 * k, sign);
        for (std::size_t i = k; i < x.size(); i += 2) x[i] = -sign;
        const std::vector<float> want = reference(x, 2, w.view);
        const std::string what = fmt::format("{} {:02x} {}", dtype_name(dtype), fill, sign);
        if (fused()) {
          expect_same_bits(run(x, 2, w.view), want, what);
        } else {
          expect_close(run(x, 2, w.view), want, 1e-5, 1e-4, what);
        }
      }
    }
  }
}

TEST_P(PackedGemmTest, ARowsBitsDoNotDependOnItsCompanions) {
  constexpr std::int64_t k = 2560, n = 32, most = 150;
  for (const DType dtype : packable_dtypes()) {
    const TestWeight w = make_packed(make_weight(dtype, n, k, 41));
    const std::vector<float> x = random_values(most * k, 42);
    const std::vector<float> all = run(x, most, w.view);  // several token blocks
    for (std::int64_t t = 0; t < most; t += 7) {
      const std::vector<float> row(x.begin() + t * k, x.begin() + (t + 1) * k);
      const std::vector<float> want(all.begin() + t * n, all.begin() + (t + 1) * n);
      expect_same_bits(run(row, 1, w.view), want, fmt::format("row {}", t));
    }
    for (const std::int64_t t : {2, 3, 5, 8, 9, 33}) {
      const std::vector<float> want(all.begin(), all.begin() + t * n);
      expect_same_bits(run(x, t, w.view), want, fmt::format("T={}", t));
    }
    // Nor on which rows of the weight are taken.
    const std::vector<float> part = run(x, 9, w.view.slice_rows(16, 16));
    for (std::int64_t t = 0; t < 9; ++t) {
      for (std::int64_t i = 0; i < 16; ++i) {
        ASSERT_EQ(part[static_cast<std::size_t>(t * 16 + i)],
                  all[static_cast<std::size_t>(t * n + 16 + i)]);
      }
    }
  }
}

TEST_P(PackedGemmTest, NorOnThreadsOrWorkspace) {
  constexpr std::int64_t k = 768, n = 112;
  const TestWeight w = make_packed(make_weight(DType::kQ4_0, n, k, 51));
  for (const std::int64_t t : {1, 30, 600}) {
    const std::vector<float> x = random_values(t * k, 52);
    const std::vector<float> want = run(x, t, w.view);
    for (const int threads : {1, 2, 3}) {
      for (const std::size_t bytes : {0, 100, 3 * 768 / 32 * 48 + 17, 1 << 22}) {
        ThreadPool pool(threads);
        Buffer workspace(bytes);
        expect_same_bits(run(x, t, w.view, {&pool, {workspace.data(), bytes}}), want,
                         fmt::format("{} threads, {} bytes", threads, bytes));
      }
    }
  }
}

TEST_P(PackedGemmTest, AddsTheWholeDotOnceAndWritesNothingBeside) {
  const TestWeight w = make_packed(make_weight(DType::kQ6_K, 32, 512, 61));
  const std::vector<float> x = random_values(9 * 512, 62);
  const std::vector<float> dot = run(x, 9, w.view);
  std::vector<float> wide_x(9 * 520, kNan);
  for (std::size_t t = 0; t < 9; ++t) std::copy_n(&x[t * 512], 512, &wide_x[t * 520 + 3]);
  const std::vector<float> before = random_values(9 * 37, 63, 100.0F);
  std::vector<float> y = before;
  packed_gemm(kernels(), {}, matrix<const float>(wide_x.data() + 3, 9, 512, 520), w.view,
              Accumulate::kAdd, matrix(y.data() + 2, 9, 32, 37));
  for (std::size_t t = 0; t < 9; ++t) {
    for (std::size_t c = 0; c < 37; ++c) {
      const bool inside = c >= 2 && c < 34;
      const float want = before[t * 37 + c] + (inside ? dot[t * 32 + c - 2] : 0.0F);
      ASSERT_EQ(y[t * 37 + c], want);
    }
  }
}

TEST_P(PackedGemmTest, ZerosTinyNumbersAndNumbersThatAreNone) {
  constexpr std::int64_t k = 96;
  const TestWeight w = make_packed(make_weight(DType::kQ4_1, 16, k, 71));
  EXPECT_EQ(run(std::vector<float>(k, 0.0F), 1, w.view), std::vector<float>(16, 0.0F));
  EXPECT_EQ(run(std::vector<float>(k, 1e-38F), 1, w.view), std::vector<float>(16, 0.0F));
  for (const float bad :
       {kNan, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = random_values(2 * k, 72);
    x[40] = bad;
    const std::vector<float> y = run(x, 2, w.view);
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_TRUE(std::isnan(y[i])) << bad;
      EXPECT_TRUE(std::isfinite(y[16 + i])) << "a neighbour's answer";
    }
  }
  // The largest float is still one.
  std::vector<float> x(k, 0.0F);
  x[0] = std::numeric_limits<float>::max();
  const TestWeight small = make_packed(make_weight(DType::kQ8_0, 16, k, 73));
  for (const float v : run(x, 1, small.view)) EXPECT_TRUE(std::isfinite(v));
}

TEST_P(PackedGemmTest, NoTokens) {
  const TestWeight w = make_packed(make_weight(DType::kQ8_0, 16, 64, 81));
  EXPECT_TRUE(run({}, 0, w.view).empty());
}

constexpr std::int64_t kK = 256;
constexpr std::int64_t kN = 48;

struct Experts {
  std::vector<TestWeight> owned;
  std::vector<WeightView> views;
};

Experts make_experts(const std::vector<DType>& types, std::uint32_t first_seed = 100) {
  Experts e;
  for (const DType dtype : types) {
    const auto seed = first_seed + static_cast<std::uint32_t>(e.owned.size());
    TestWeight w = make_weight(dtype, kN, kK, seed);
    e.owned.push_back(packed_dtype(dtype) ? make_packed(w) : std::move(w));
    e.views.push_back(e.owned.back().view);
  }
  return e;
}

TEST_P(PackedGemmTest, GroupedRowsHaveTheBitsOfGemm) {
  const std::vector<std::vector<std::int64_t>> splits = {
      {0, 3, 3, 10, 11}, {0, 0, 0, 0, 70}, {0, 70, 70, 70, 70}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}};
  using enum DType;
  for (const auto& types : std::vector<std::vector<DType>>{{kQ4_0, kQ4_0, kQ4_0, kQ4_0},
                                                           {kQ6_K, kQ6_K, kQ6_K, kQ6_K},
                                                           {kQ4_0, kQ8_0, kQ4_K, kQ8_0}}) {
    const Experts experts = make_experts(types);
    for (const auto& offsets : splits) {
      const std::int64_t rows = offsets.back();
      const std::vector<float> x = random_values(rows * kK, 1);
      std::vector<float> want;
      for (std::size_t e = 0; e < 4; ++e) {
        for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
          const std::vector<float> row(x.begin() + r * kK, x.begin() + (r + 1) * kK);
          const std::vector<float> y = run(row, 1, experts.views[e]);
          want.insert(want.end(), y.begin(), y.end());
        }
      }
      for (const int threads : {1, 2, 3, 7}) {
        for (const std::size_t bytes : {0, 9 * 8 * 48}) {  // all rows at once, and nine at a time
          ThreadPool pool(threads);
          Buffer workspace(bytes);
          std::vector<float> y = poisoned(rows * kN);
          packed_grouped_gemm(
              kernels(), {&pool, {workspace.data(), bytes}},
              {matrix(x.data(), rows, kK), {}, offsets, experts.views, matrix(y.data(), rows, kN)});
          expect_same_bits(y, want, fmt::format("{} rows, {} threads", rows, threads));
        }
      }
    }
  }
}

TEST_P(PackedGemmTest, GroupedIndirectRows) {
  const Experts experts = make_experts({DType::kQ4_0, DType::kQ4_0, DType::kQ4_0});
  const std::vector<std::int64_t> offsets = {0, 5, 5, 9};
  const std::vector<std::int32_t> from = {6, 0, 3, 3, 1, 6, 2, 0, 5};
  const std::vector<float> x = random_values(7 * kK, 2);
  std::vector<float> gathered;
  for (const std::int32_t r : from) gathered.insert(gathered.end(), &x[r * kK], &x[r * kK] + kK);
  std::vector<float> want = poisoned(9 * kN);
  packed_grouped_gemm(kernels(), {},
                      {matrix<const float>(gathered.data(), 9, kK),
                       {},
                       offsets,
                       experts.views,
                       matrix(want.data(), 9, kN)});
  for (const std::size_t bytes : {0, 2 * 8 * 48}) {  // x fits, and two rows at a time
    Buffer workspace(bytes);
    std::vector<float> got = poisoned(9 * kN);
    packed_grouped_gemm(kernels(), {nullptr, {workspace.data(), bytes}},
                        {matrix<const float>(x.data(), 7, kK), from, offsets, experts.views,
                         matrix(got.data(), 9, kN)});
    expect_same_bits(got, want, fmt::format("{} bytes", bytes));
  }
}

class PackedOpTest : public EachSet {};
INSTANTIATE_TEST_SUITE_P(Cpu, PackedOpTest, ::testing::ValuesIn(packed_tables()), set_name);

// The ops of the table take packed weights, beside others in one call.
TEST_P(PackedOpTest, TheTableTakesPackedWeights) {
  const Experts experts = make_experts({DType::kQ4_0, DType::kBF16, DType::kQ6_K, DType::kF32});
  const std::vector<std::int64_t> offsets = {0, 2, 5, 6, 9};
  const std::vector<float> x = random_values(9 * kK, 3);
  std::vector<float> want = poisoned(9 * kN);
  for (std::size_t e = 0; e < 4; ++e) {
    const std::int64_t begin = offsets[e], count = offsets[e + 1] - begin;
    set().gemm({}, matrix(x.data() + begin * kK, count, kK), experts.views[e], Accumulate::kStore,
               matrix(want.data() + begin * kN, count, kN));
  }
  std::vector<float> y = poisoned(9 * kN);
  set().grouped_gemm(
      {}, {matrix(x.data(), 9, kK), {}, offsets, experts.views, matrix(y.data(), 9, kN)});
  expect_same_bits(y, want, std::string(set().name));
  std::vector<float> defined = poisoned(9 * kN);
  reference_table().grouped_gemm(
      {}, {matrix(x.data(), 9, kK), {}, offsets, experts.views, matrix(defined.data(), 9, kN)});
  expect_close(y, defined, 1e-5, 1e-4, std::string(set().name));
}

// gate_up at once and in its parts: packed weights of one type, of two, and plain ones; empty
// experts, rows of more than one pass, a workspace that takes few rows.
TEST_P(PackedOpTest, GateUpHasTheBitsOfItsParts) {
  using enum DType;
  const std::vector<std::vector<std::int64_t>> splits = {
      {0, 2, 2, 11}, {0, 30, 31, 31}, {0, 16, 24, 60}, {0, 0, 0, 1}, {0, 0, 0, 0}};
  for (const auto& types : std::vector<std::vector<DType>>{{kQ4_0, kQ4_0, kQ4_0},
                                                           {kQ8_0, kQ8_0, kQ8_0},
                                                           {kQ6_K, kQ6_K, kQ6_K},
                                                           {kQ4_0, kQ8_0, kQ4_K},
                                                           {kBF16, kQ4_0, kF32}}) {
    const Experts gate = make_experts(types);
    const Experts up = make_experts({types[0], types[2], types[1]}, 200);
    for (const auto& offsets : splits) {
      const std::int64_t rows = offsets.back();
      const std::vector<float> x = random_values(20 * kK, 5, 2.0F);
      std::vector<std::int32_t> from;
      for (std::int64_t r = 0; r < rows; ++r) from.push_back(static_cast<std::int32_t>(r * 7 % 20));
      GroupedGemmArgs args{matrix<const float>(x.data(), 20, kK), from, offsets, gate.views, {}};
      std::vector<float> want = poisoned(rows * kN), work = poisoned(rows * kN);
      args.y = matrix(want.data(), rows, kN);
      set().grouped_gemm({}, args);
      args.weights = up.views;
      args.y = matrix(work.data(), rows, kN);
      set().grouped_gemm({}, args);
      set().swiglu({}, matrix<const float>(want.data(), rows, kN),
                   matrix<const float>(work.data(), rows, kN), matrix(want.data(), rows, kN));
      for (const int threads : {1, 3}) {
        for (const std::size_t bytes : {0, 2 * 8 * 48}) {
          ThreadPool pool(threads);
          Buffer workspace(bytes);
          std::vector<float> y = poisoned(rows * kN);
          args.weights = gate.views;
          args.y = matrix(y.data(), rows, kN);
          set().gate_up({&pool, {workspace.data(), bytes}},
                        {args, up.views, matrix(work.data(), rows, kN)});
          expect_same_bits(y, want, fmt::format("{} {} rows", dtype_name(types[0]), rows));
        }
      }
    }
  }
}

// One row and one block, worked out by hand: x = 127, -1 and zeros has s = 1 and keeps its values.
TEST(PackedReference, HandComputed) {
  std::vector<std::uint8_t> q4(16 * 18);
  const std::uint16_t half = f32_to_f16(0.5F);
  for (std::size_t r = 0; r < 16; ++r) {
    std::memcpy(&q4[18 * r], &half, 2);
    q4[18 * r + 2] = static_cast<std::uint8_t>(r | (3 << 4));  // value 0 is r, value 16 is 3
  }
  const WeightView source{reinterpret_cast<const std::byte*>(q4.data()), DType::kQ4_0, 16, 32};
  std::vector<std::byte> packed(q4.size());
  pack_weight(source, packed.data());
  std::vector<float> x(32, 0.0F);
  x[0] = 127;
  x[16] = -1;
  const std::vector<float> y = reference(x, 1, {packed.data(), DType::kP4_0, 16, 32});
  for (int r = 0; r < 16; ++r) {
    EXPECT_EQ(y[static_cast<std::size_t>(r)], 0.5F * static_cast<float>((r - 8) * 127 + 5));
  }
}

TEST(PackedContract, ShapesAreChecked) {
  std::vector<float> f(64);
  const WeightView w{reinterpret_cast<const std::byte*>(f.data()), DType::kP4_0, 8, 32};
  EXPECT_DEATH(check_gemm(matrix<const float>(f.data(), 1, 32), w, matrix(f.data(), 1, 8)), "N=8");
}

}  // namespace
}  // namespace millrace::kernels::testing
