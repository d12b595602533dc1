// Shared by the tests of packed weights, gemm and grouped_gemm: shapes, data, oracles in f64.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <ostream>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_pack.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/quantize.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda {

// Names tests for ctest.
inline void PrintTo(WeightFormat format, std::ostream* out) {
  *out << (format == WeightFormat::kBf16 ? "bf16" : "fp8");
}

}  // namespace millrace::kernels::cuda

namespace millrace::kernels::cuda::testing {

// Paths that the current device can run: its own one first.
inline std::vector<GemmPath> gemm_paths() {
  std::vector<GemmPath> paths = {GemmPath::kMma};
  if (current_cc() == 90) paths.insert(paths.begin(), GemmPath::kWgmma);
  return paths;
}
inline constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kFp8E4M3};

inline std::string describe(GemmPath path, WeightFormat format) {
  return fmt::format("{} {}", path == GemmPath::kMma ? "mma" : "wgmma",
                     format == WeightFormat::kBf16 ? "bf16" : "fp8");
}

// Every way to cut and spread the same product.
struct Spread {
  int tile_tokens;
  GemmSpread spread;
};
inline std::vector<Spread> all_spreads() {
  std::vector<Spread> out;
  for (const int tile : kGemmTileTokens) {
    out.push_back({tile, GemmSpread::kWhole});
    out.push_back({tile, GemmSpread::kSplit});
    if (tile <= 16) out.push_back({tile, GemmSpread::kNarrow});
  }
  return out;
}
inline std::string describe(const Spread& s) {
  constexpr const char* kNames[] = {"whole", "split", "narrow"};
  return fmt::format("tile {} {}", s.tile_tokens, kNames[static_cast<int>(s.spread)]);
}

// Small whole numbers: every sum of products below 2^24 is exact in any order, and e4m3 holds them.
inline std::vector<float> small_integers(std::int64_t n, std::uint32_t seed) {
  std::vector<float> out = random_values(n, seed, 3.49F);
  for (float& v : out) v = std::nearbyint(v);
  return out;
}

// Powers of two that differ from row to row and from one 128 columns to the next, as scales do.
inline std::vector<float> scaled_rows(std::vector<float> values, std::int64_t cols) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    values[i] = std::ldexp(values[i], static_cast<int>((at / cols * 2 + at % cols / 128) % 5) - 2);
  }
  return values;
}

inline MatrixView<const BFloat16> device_matrix(const DeviceArray<BFloat16>& a, std::int64_t rows,
                                                std::int64_t cols, std::int64_t stride = 0) {
  return matrix<const BFloat16>(a.data(), rows, cols, stride);
}

// A weight on the device, and the values it stands for.
struct PackedOnDevice {
  DeviceArray<std::byte> bytes;
  PackedWeight view;
  std::vector<float> values;  // [rows, cols] in packed row order
};

// `values` [groups * rows, cols] become `groups` packed weights, one after the other.
inline PackedOnDevice pack_on_device(WeightFormat format, const std::vector<float>& values,
                                     std::int64_t rows, std::int64_t cols,
                                     std::int64_t groups = 1) {
  const DeviceArray<BFloat16> source(to_bf16(values));
  const std::int64_t bytes = packed_bytes(format, rows, cols);
  PackedOnDevice out{{static_cast<std::size_t>(bytes * groups), std::byte{0xff}}, {}, {}};
  const DeviceArray<std::uint32_t> unusable(1, 0);
  for (std::int64_t g = 0; g < groups; ++g) {
    const auto from = device_matrix(source, rows * groups, cols).slice_rows(g * rows, rows);
    std::byte* to = out.bytes.data() + g * bytes;
    if (format == WeightFormat::kBf16) {
      pack_weight(default_stream(), {from, {}}, to);
    } else {
      quantize_weight(default_stream(), {from, {}}, to, unusable.data());
    }
    const DeviceArray<BFloat16> back(static_cast<std::size_t>(rows * cols), kBf16Nan);
    unpack_weight(default_stream(), {to, format, rows, cols},
                  {matrix(back.data(), rows, cols), {}});
    const std::vector<float> v = to_f32(back.read());
    out.values.insert(out.values.end(), v.begin(), v.end());
  }
  EXPECT_EQ(unusable.read()[0], 0U);
  out.view = {out.bytes.data(), format, rows, cols};
  return out;
}

// A workspace for splits of any tile: tests force them where the plan would not.
class TestWorkspace {
 public:
  TestWorkspace(std::int64_t tiles, std::int64_t chunks)
      : tickets_(static_cast<std::size_t>(tiles), 0U),
        partials_(static_cast<std::size_t>(tiles * chunks * 128 * 128), kNan) {}

  GemmWorkspace view() const {
    return {partials_.data(), static_cast<std::int64_t>(partials_.size() * sizeof(float)),
            tickets_.data(), static_cast<std::int64_t>(tickets_.size())};
  }
  bool tickets_are_zero() const {
    for (const std::uint32_t t : tickets_.read()) {
      if (t != 0) return false;
    }
    return true;
  }

 private:
  DeviceArray<std::uint32_t> tickets_;
  DeviceArray<float> partials_;
};

struct Dot {
  double sum = 0;
  double size = 0;  // sum of magnitudes
};
inline Dot dot(const float* x, const float* w, std::int64_t k) {
  Dot d;
  for (std::int64_t i = 0; i < k; ++i) {
    const double product = static_cast<double>(x[i]) * w[i];
    d.sum += product;
    d.size += std::fabs(product);
  }
  return d;
}

// Products of two bf16 are exact in f32. Tensor cores may truncate where they add (an ulp, 2^-23 of
// the partial sum, which is at most `size`): each of a chunk's 512 additions and each chunk's.
inline double dot_tolerance(const Dot& d, std::int64_t k) {
  const double additions = static_cast<double>(std::min<std::int64_t>(k, kGemmChunk)) +
                           static_cast<double>((k + kGemmChunk - 1) / kGemmChunk);
  return additions * 0x1p-23 * d.size;
}

}  // namespace millrace::kernels::cuda::testing
