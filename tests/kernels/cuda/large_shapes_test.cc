// The products of LFM2-24B-A2B at their real sizes: more tiles than a device has multiprocessors,
// long sums, workspaces of the planned size. Sampled outputs against f64, and the bits of a row
// against the same row among others. Under the emulator with small sizes.
#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/moe_permute.h"
#include "kernels/cuda/random_weights.h"
#include "kernels/random_weights.h"
#include "tests/kernels/cuda/gemm_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

#if defined(MILLRACE_CUDA_EMULATED)
constexpr bool kSmall = true;
#else
constexpr bool kSmall = false;
#endif

std::size_t size_of(std::int64_t n) { return static_cast<std::size_t>(n); }

// `groups` packed weights of random values, and the values as they were packed.
struct LargeWeight {
  DeviceBuffer bytes;
  PackedWeight view;
  std::vector<BFloat16> values;  // [groups * rows, cols]
};

LargeWeight make_weight(WeightFormat format, std::int64_t rows, std::int64_t cols,
                        std::int64_t groups = 1) {
  const StreamRef stream = default_stream();
  LargeWeight out{{}, {nullptr, format, rows, cols}, {}};
  const std::int64_t bytes = out.view.bytes();
  out.bytes = poisoned<std::byte>(stream, size_of(bytes * groups));
  out.view.data = out.bytes.data();
  out.values.resize(size_of(groups * rows * cols));
  const DeviceArray<std::uint32_t> unusable(1, 0);
  const DeviceBuffer plain = poisoned<BFloat16>(stream, size_of(rows * cols));
  for (std::int64_t g = 0; g < groups; ++g) {
    random_weights(stream, {11, static_cast<std::uint64_t>(g * rows * cols), rows * cols,
                            random_weight_half_step(cols), plain.as<BFloat16>()});
    const WeightRows source{matrix<const BFloat16>(plain.as<BFloat16>(), rows, cols), {}};
    std::byte* to = out.bytes.data() + g * bytes;
    if (format == WeightFormat::kBf16) {
      pack_weight(stream, source, to);
    } else {
      quantize_weight(stream, source, to, unusable.data());
    }
    unpack_weight(stream, {to, format, rows, cols}, {matrix(plain.as<BFloat16>(), rows, cols), {}});
    copy_to_host(stream, out.values.data() + g * rows * cols, plain.data(), plain.bytes());
    synchronize(stream, kTestDeadline);
  }
  EXPECT_EQ(unusable.read()[0], 0U);
  return out;
}

std::vector<BFloat16> random_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  std::vector<std::uint16_t> bits(size_of(rows * cols));
  kernels::random_weights(seed, 0, random_weight_half_step(1), bits);
  std::vector<BFloat16> out(bits.size());
  std::transform(bits.begin(), bits.end(), out.begin(),
                 [](std::uint16_t b) { return BFloat16{b}; });
  return out;
}

class PlannedWorkspace {
 public:
  explicit PlannedWorkspace(const GemmWorkspaceSize& size)
      : partials_(poisoned<float>(default_stream(), size_of(size.partial_bytes / 4))),
        tickets_(size_of(size.ticket_count), 0U) {}
  GemmWorkspace view() const {
    return {partials_.as<float>(), static_cast<std::int64_t>(partials_.bytes()), tickets_.data(),
            static_cast<std::int64_t>(tickets_.size())};
  }

 private:
  DeviceBuffer partials_;
  DeviceArray<std::uint32_t> tickets_;
};

std::vector<float> product(const LargeWeight& w, const std::vector<BFloat16>& x,
                           std::int64_t tokens) {
  const DeviceArray<BFloat16> device_x(x);
  const DeviceArray<float> y(size_of(tokens * w.view.rows), kNan);
  const PlannedWorkspace workspace(gemm_workspace(w.view.format, tokens, w.view.rows, w.view.cols));
  gemm(default_stream(), {matrix<const BFloat16>(device_x.data(), tokens, w.view.cols),
                          w.view,
                          GemmOutput::store(matrix(y.data(), tokens, w.view.rows)),
                          workspace.view(),
                          {}});
  return y.read();
}

// Some outputs against f64.
void expect_products(const LargeWeight& w, const std::vector<BFloat16>& x,
                     const std::vector<float>& y, std::int64_t tokens, const std::string& what) {
  const std::int64_t cols = w.view.cols;
  std::mt19937 random(3);
  const std::vector<float> widened = to_f32(x);
  for (int i = 0; i < 600; ++i) {
    const std::int64_t t = random() % static_cast<unsigned>(tokens);
    const std::int64_t n = random() % static_cast<unsigned>(w.view.rows);
    std::vector<float> row;
    for (std::int64_t k = 0; k < cols; ++k) {
      row.push_back(cuda::to_f32(w.values[size_of(n * cols + k)]));
    }
    const Dot d = dot(&widened[size_of(t * cols)], row.data(), cols);
    ASSERT_NEAR(y[size_of(t * w.view.rows + n)], d.sum, dot_tolerance(d, cols))
        << what << " row " << t << " output " << n;
  }
}

class LargeShapes : public ::testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, LargeShapes, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return format.index == 0 ? "bf16" : "fp8"; });

TEST_P(LargeShapes, ProductsOfTheModel) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes =
      kSmall ? std::vector<std::pair<std::int64_t, std::int64_t>>{{192, 576}}
             : std::vector<std::pair<std::int64_t, std::int64_t>>{
                   {6144, 2048}, {3072, 2048}, {2048, 2048}, {23552, 2048}, {2048, 11776}};
  const std::vector<std::int64_t> steps =
      kSmall ? std::vector<std::int64_t>{1, 9, 70}
             : std::vector<std::int64_t>{1, 2, 8, 9, 17, 33, 64, 100, 256, 513, 2048};
  for (const auto& [rows, cols] : shapes) {
    const LargeWeight w = make_weight(GetParam(), rows, cols);
    const std::vector<BFloat16> x = random_rows(steps.back(), cols, 5);
    const std::vector<float> most = product(w, x, steps.back());
    expect_products(w, x, most, steps.back(), fmt::format("[{}, {}]", rows, cols));
    for (const std::int64_t tokens : steps) {
      // The last rows, so that they come to other places in their tiles.
      const std::vector<BFloat16> part(x.end() - tokens * cols, x.end());
      const std::vector<float> y = product(w, part, tokens);
      ASSERT_TRUE(std::equal(y.begin(), y.end(), most.end() - tokens * rows,
                             [](float a, float b) {
                               return std::bit_cast<std::uint32_t>(a) ==
                                      std::bit_cast<std::uint32_t>(b);
                             }))
          << "[" << rows << ", " << cols << "] of " << tokens << " tokens";
    }
  }
}

TEST_P(LargeShapes, ExpertsOfAStep) {
  const std::int64_t experts = kSmall ? 8 : 64;
  const std::int64_t top_k = kSmall ? 2 : 4;
  const auto [rows, cols] = kSmall ? std::pair<std::int64_t, std::int64_t>{96, 192}
                                   : std::pair<std::int64_t, std::int64_t>{3072, 2048};
  const LargeWeight w = make_weight(GetParam(), rows, cols, experts);
  const std::vector<std::int64_t> steps =
      kSmall ? std::vector<std::int64_t>{1, 20} : std::vector<std::int64_t>{1, 31, 256, 1024, 2048};
  for (const std::int64_t tokens : steps) {
    std::mt19937 random(static_cast<unsigned>(tokens));
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> all(size_of(experts));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + top_k);
      ids.insert(ids.end(), all.begin(), all.begin() + top_k);
    }
    const std::vector<BFloat16> x = random_rows(tokens, cols, 6);
    const DeviceArray<std::int32_t> device_ids(ids);
    const DeviceArray<std::int32_t> offsets(size_of(experts + 1), -1);
    const DeviceArray<std::int32_t> places(ids.size(), -1);
    const DeviceArray<std::int32_t> order(ids.size(), -1);
    MoePermuteArgs permute;
    permute.ids = matrix<const std::int32_t>(device_ids.data(), tokens, top_k);
    permute.experts = permute.slots = static_cast<std::int32_t>(experts);
    permute.offsets = offsets.data();
    permute.rows = matrix(places.data(), tokens, top_k);
    permute.tokens = order.data();
    moe_permute(default_stream(), permute);

    const DeviceArray<BFloat16> device_x(x);
    const auto pairs = static_cast<std::int64_t>(ids.size());
    const DeviceArray<float> y(size_of(pairs * rows), kNan);
    const PlannedWorkspace workspace(
        grouped_gemm_workspace(GetParam(), pairs, static_cast<std::int32_t>(experts), rows, cols));
    GroupedGemmArgs args;
    args.x = matrix<const BFloat16>(device_x.data(), tokens, cols);
    args.x_rows = order.data();
    args.offsets = offsets.data();
    args.experts = static_cast<std::int32_t>(experts);
    args.max_rows = pairs;
    args.w = w.view;
    args.y = GemmOutput::store(matrix(y.data(), pairs, rows));
    args.workspace = workspace.view();
    grouped_gemm(default_stream(), args);

    // Every pair's row has the bits of a plain product with its expert.
    const std::vector<float> got = y.read();
    const std::vector<std::int32_t> row_of = places.read();
    for (std::int64_t e = 0; e < experts; e += kSmall ? 3 : 9) {
      std::vector<BFloat16> mine;
      std::vector<std::int32_t> at;
      for (std::int64_t i = 0; i < pairs; ++i) {
        if (ids[size_of(i)] != e) continue;
        const auto from = x.begin() + i / top_k * cols;
        mine.insert(mine.end(), from, from + cols);
        at.push_back(row_of[size_of(i)]);
      }
      if (at.empty()) continue;
      LargeWeight one{
          {},
          w.view,
          {w.values.begin() + e * rows * cols, w.values.begin() + (e + 1) * rows * cols}};
      one.view.data += e * w.view.bytes();
      const auto count = static_cast<std::int64_t>(at.size());
      const std::vector<float> want = product(one, mine, count);
      expect_products(one, mine, want, count, fmt::format("expert {}", e));
      for (std::int64_t r = 0; r < count; ++r) {
        const auto from = got.begin() + at[size_of(r)] * rows;
        ASSERT_EQ(std::vector(from, from + rows),
                  std::vector(want.begin() + r * rows, want.begin() + (r + 1) * rows))
            << "expert " << e << ", " << tokens << " tokens";
      }
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
