// Packed weights: the layout that gemm_layout.h describes, its inverse, and FP8 quantisation.
#include "kernels/cuda/quantize.h"

#include "tests/kernels/cuda/gemm_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

struct Shape {
  std::int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 32}, {64, 64}, {65, 96}, {200, 160}, {16, 2048}};

std::vector<std::byte> pack(WeightFormat format, const WeightRows& rows,
                            std::uint32_t* unusable_count = nullptr) {
  const std::int64_t bytes = packed_bytes(format, rows.rows(), rows.cols());
  const DeviceArray<std::byte> packed(static_cast<std::size_t>(bytes), std::byte{0xff});
  const DeviceArray<std::uint32_t> unusable(1, 0);
  if (format == WeightFormat::kBf16) {
    pack_weight(default_stream(), rows, packed.data());
  } else {
    quantize_weight(default_stream(), rows, packed.data(), unusable.data());
  }
  if (unusable_count != nullptr) *unusable_count = unusable.read()[0];
  return packed.read();
}

float value_at(const std::vector<std::byte>& packed, std::int64_t offset) {
  BFloat16 v;
  std::memcpy(&v, packed.data() + offset, sizeof v);
  return cuda::to_f32(v);
}

TEST(PackTest, EveryElementLiesWhereTheLayoutSays) {
  for (const auto& [rows, cols] : kShapes) {
    const std::vector<float> w = random_bf16(rows * cols, 3);
    const DeviceArray<BFloat16> source(to_bf16(w));
    const std::vector<std::byte> packed =
        pack(WeightFormat::kBf16, {device_matrix(source, rows, cols), {}});
    std::vector<bool> used(packed.size());
    for (std::int64_t n = 0; n < rows; ++n) {
      for (std::int64_t k = 0; k < cols; ++k) {
        const std::int64_t at = packed_offset(WeightFormat::kBf16, cols, n, k);
        ASSERT_FALSE(used[static_cast<std::size_t>(at)]) << n << ' ' << k;
        used[static_cast<std::size_t>(at)] = used[static_cast<std::size_t>(at) + 1] = true;
        ASSERT_EQ(value_at(packed, at), w[static_cast<std::size_t>(n * cols + k)]) << n << ' ' << k;
      }
    }
    for (std::size_t i = 0; i < packed.size(); ++i) {
      ASSERT_TRUE(used[i] || packed[i] == std::byte{0}) << "padding, byte " << i;
    }
  }
}

TEST(PackTest, GateAndUpRowsAlternateByEight) {
  constexpr std::int64_t kF = 40;
  constexpr std::int64_t kK = 64;
  const std::vector<float> gate = random_bf16(kF * kK, 4);
  const std::vector<float> up = random_bf16(kF * kK, 5);
  const DeviceArray<BFloat16> g(to_bf16(gate));
  const DeviceArray<BFloat16> u(to_bf16(up));
  const WeightRows rows{device_matrix(g, kF, kK), device_matrix(u, kF, kK)};
  const std::vector<std::byte> packed = pack(WeightFormat::kBf16, rows);
  for (std::int64_t f = 0; f < kF; ++f) {
    for (std::int64_t k = 0; k < kK; ++k) {
      const auto i = static_cast<std::size_t>(f * kK + k);
      ASSERT_EQ(value_at(packed, packed_offset(WeightFormat::kBf16, kK, gate_row(f), k)), gate[i]);
      ASSERT_EQ(value_at(packed, packed_offset(WeightFormat::kBf16, kK, up_row(f), k)), up[i]);
    }
  }
  // And back into two strided matrices.
  const DeviceArray<std::byte> device(packed);
  const DeviceArray<BFloat16> both(static_cast<std::size_t>(kF * 2 * kK), kBf16Nan);
  const auto wide = matrix(both.data(), kF, 2 * kK);
  unpack_weight(default_stream(), {device.data(), WeightFormat::kBf16, 2 * kF, kK},
                {wide.slice_cols(0, kK), wide.slice_cols(kK, kK)});
  const std::vector<float> back = to_f32(both.read());
  for (std::int64_t f = 0; f < kF; ++f) {
    for (std::int64_t k = 0; k < kK; ++k) {
      const auto at = static_cast<std::size_t>(f * 2 * kK + k);
      ASSERT_EQ(back[at], gate[static_cast<std::size_t>(f * kK + k)]);
      ASSERT_EQ(back[at + kK], up[static_cast<std::size_t>(f * kK + k)]);
    }
  }
}

// What quantize.h promises, the slow way: try the scales from the smallest.
std::vector<float> quantized(const std::vector<float>& w, std::int64_t rows, std::int64_t cols) {
  std::vector<float> out(w.size());
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t block = 0; block < cols; block += 128) {
      const std::int64_t end = std::min(cols, block + 128);
      float largest = 0;
      for (std::int64_t k = block; k < end; ++k) {
        largest = std::max(largest, std::fabs(w[static_cast<std::size_t>(n * cols + k)]));
      }
      int e = -100;
      while (e < 7 && largest > std::ldexp(448.0F, e)) ++e;
      for (std::int64_t k = block; k < end; ++k) {
        const auto i = static_cast<std::size_t>(n * cols + k);
        out[i] = std::ldexp(cuda::to_f32(to_e4m3(std::ldexp(w[i], -e))), e);
      }
    }
  }
  return out;
}

std::vector<float> unpacked(const std::vector<std::byte>& packed, std::int64_t rows,
                            std::int64_t cols) {
  const DeviceArray<std::byte> device(packed);
  const DeviceArray<BFloat16> back(static_cast<std::size_t>(rows * cols), kBf16Nan);
  unpack_weight(default_stream(), {device.data(), WeightFormat::kFp8E4M3, rows, cols},
                {matrix(back.data(), rows, cols), {}});
  return to_f32(back.read());
}

TEST(QuantizeTest, IsTheNearestE4m3AtTheSmallestScale) {
  for (const auto& [rows, cols] : kShapes) {
    for (const float scale : {1e-30F, 0.02F, 1.0F, 447.0F, 449.0F, 50000.0F}) {
      std::vector<float> w = random_bf16(rows * cols, 6, scale);
      w[0] = 0;
      const DeviceArray<BFloat16> source(to_bf16(w));
      std::uint32_t unusable = 1;
      const auto packed =
          pack(WeightFormat::kFp8E4M3, {device_matrix(source, rows, cols), {}}, &unusable);
      EXPECT_EQ(unusable, 0U);
      expect_same_bits(unpacked(packed, rows, cols), quantized(w, rows, cols),
                       fmt::format("[{}, {}] {}", rows, cols, scale));
    }
  }
}

TEST(QuantizeTest, ErrorIsAtMostASixteenth) {
  const std::vector<float> w = random_bf16(8 * 512, 7, 0.05F);
  const DeviceArray<BFloat16> source(to_bf16(w));
  const auto got =
      unpacked(pack(WeightFormat::kFp8E4M3, {device_matrix(source, 8, 512), {}}), 8, 512);
  for (std::size_t i = 0; i < w.size(); ++i) {
    // Of the value, or half a step of the block's subnormals: 2^-10 of 2^e, where 0.05 <= 448 *
    // 2^e.
    ASSERT_NEAR(got[i], w[i], std::max(std::fabs(w[i]) / 16, std::ldexp(1.0F, -10 - 13))) << i;
  }
}

TEST(QuantizeTest, ZerosAndSubnormalsAndTheEdgesOfScales) {
  // 448 * 2^e exactly, and the next bf16 above it; bf16 subnormals; a block of zeros.
  std::vector<float> w(4 * 128, 0.0F);
  w[0] = 448.0F;
  w[1] = 1.0F;
  w[128] = 450.0F;
  w[129] = -3.0F;
  w[256] = 0x1p-133F;
  w[384] = 57344.0F;
  w[385] = -0x1p-2F;
  const DeviceArray<BFloat16> source(to_bf16(w));
  const auto packed = pack(WeightFormat::kFp8E4M3, {device_matrix(source, 4, 128), {}});
  expect_same_bits(unpacked(packed, 4, 128), quantized(w, 4, 128), "edges");
}

TEST(QuantizeTest, CountsWhatNoScaleCanHold) {
  std::vector<BFloat16> w(2 * 128, cuda::to_bf16(1.0F));
  w[3] = {0x7f80};  // infinity
  w[5] = {0xff80};  // minus infinity
  w[7] = kBf16Nan;
  w[9] = cuda::to_bf16(57600.0F);  // the next bf16 above 57344
  w[128 + 11] = cuda::to_bf16(57344.0F);
  const DeviceArray<BFloat16> source(w);
  std::uint32_t unusable = 0;
  const auto packed = pack(WeightFormat::kFp8E4M3, {device_matrix(source, 2, 128), {}}, &unusable);
  EXPECT_EQ(unusable, 4U);
  const auto got = unpacked(packed, 2, 128);
  EXPECT_EQ(got[3], 57344.0F);
  EXPECT_EQ(got[5], -57344.0F);
  EXPECT_EQ(got[7], 0.0F);
  EXPECT_EQ(got[9], 57344.0F);
  EXPECT_EQ(got[128 + 11], 57344.0F);
  EXPECT_EQ(got[0], 1.0F);
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
