#include "kernels/cuda/swiglu.h"

#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

std::vector<float> run(const std::vector<float>& gate_up, std::int64_t rows, std::int64_t width) {
  const DeviceArray<BFloat16> device(to_bf16(gate_up));
  const DeviceArray<BFloat16> out(static_cast<std::size_t>(rows * width), kBf16Nan);
  const auto both = matrix<const BFloat16>(device.data(), rows, 2 * width);
  swiglu(default_stream(), both.slice_cols(0, width), both.slice_cols(width, width),
         matrix(out.data(), rows, width));
  return to_f32(out.read());
}

TEST(CudaSwigluTest, AgreesWithTheReference) {
  for (const std::int64_t width : {8, 32, 1536, 11776}) {
    for (const float scale : {0.01F, 4.0F, 60.0F}) {
      const std::int64_t rows = 3;
      const std::vector<float> x = random_bf16(rows * 2 * width, 7, scale);
      std::vector<float> want = poisoned(rows * width);
      const auto both = matrix<const float>(x.data(), rows, 2 * width);
      reference_table().swiglu({}, both.slice_cols(0, width), both.slice_cols(width, width),
                               matrix(want.data(), rows, width));
      // exp within an ulp, a sum, a quotient, a product: under 4 roundings; below the smallest
      // normal number bf16 has absolute steps of 2^-133.
      kernels::testing::expect_close(run(x, rows, width), want, kBf16Half + 8 * kF32Half, 0x1p-133,
                                     std::to_string(width));
    }
  }
}

TEST(CudaSwigluTest, ExtremeGates) {
  const std::vector<float> gate = {0, -0.0F, 100, -100, 3e38F, -3e38F, kNan, 1};
  std::vector<float> x = gate;
  x.insert(x.end(), 8, 2.0F);
  const std::vector<float> got = run(x, 1, 8);
  EXPECT_EQ(got[0], 0);
  EXPECT_EQ(got[1], 0);
  EXPECT_EQ(got[2], 200);
  EXPECT_NEAR(got[3], -100 * std::exp(-100.0) * 2, 1e-40);
  EXPECT_EQ(got[4], std::numeric_limits<float>::infinity());
  EXPECT_EQ(got[5], 0);
  EXPECT_TRUE(std::isnan(got[6]));
  EXPECT_NEAR(got[7], 2 / (1 + std::exp(-1.0)), 2 * kBf16Half);
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
