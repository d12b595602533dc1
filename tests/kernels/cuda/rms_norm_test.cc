#include "kernels/cuda/rms_norm.h"

#include "kernels/rms_norm.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

struct Norm {
  std::int64_t d;
  std::vector<float> x, weight;
};

Norm make_norm(std::int64_t rows, std::int64_t d, float scale, std::uint32_t seed) {
  return {d, random_values(rows * d, seed, scale), random_values(d, seed + 1)};
}

// x is read from rows of x_stride elements, to show that views may be strided.
std::vector<float> run(const Norm& norm, std::int64_t out_rows,
                       const std::vector<std::int32_t>* rows = nullptr) {
  const DeviceArray<float> x(norm.x);
  const DeviceArray<float> weight(norm.weight);
  const DeviceArray<BFloat16> out(static_cast<std::size_t>(out_rows * norm.d), kBf16Nan);
  const DeviceArray<std::int32_t> device_rows(rows != nullptr ? *rows
                                                              : std::vector<std::int32_t>(1));
  RmsNormArgs args;
  args.x = matrix<const float>(x.data(), static_cast<std::int64_t>(norm.x.size()) / norm.d, norm.d);
  args.weight = weight.data();
  args.eps = 1e-5F;
  args.rows = rows != nullptr ? device_rows.data() : nullptr;
  args.out = matrix(out.data(), out_rows, norm.d);
  rms_norm(default_stream(), args);
  return to_f32(out.read());
}

// Beside the rounding to bf16 the f32 sum of D squares and a handful of operations.
TEST(CudaRmsNormTest, AgreesWithTheReference) {
  for (const std::int64_t d : {8, 256, 2048, 2056, 4096, 7168, 16384}) {
    for (const float scale : {1e-4F, 1.0F, 1e4F}) {
      const Norm norm = make_norm(3, d, scale, static_cast<std::uint32_t>(d));
      std::vector<float> want = poisoned(3 * d);
      reference_table().rms_norm({}, matrix(norm.x.data(), 3, d), norm.weight, 1e-5F,
                                 matrix(want.data(), 3, d));
      const double bound = kBf16Half + (static_cast<double>(d) / 256 + 16) * kF32Half;
      kernels::testing::expect_close(run(norm, 3), want, bound, 1e-37, std::to_string(d));
    }
  }
}

TEST(CudaRmsNormTest, GathersRowsAndZeroesPadding) {
  const Norm norm = make_norm(6, 512, 1, 3);
  const std::vector<float> all = run(norm, 6);
  const std::vector<std::int32_t> rows = {5, -1, 0, 5, -1};
  const std::vector<float> got = run(norm, 5, &rows);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::vector<float> row = rows_of(got, static_cast<std::int64_t>(r), 1, 512);
    if (rows[r] >= 0) {
      expect_same_bits(row, rows_of(all, rows[r], 1, 512), std::to_string(r));
    } else {
      EXPECT_EQ(row, std::vector<float>(512, 0.0F)) << r;
    }
  }
}

TEST(CudaRmsNormTest, BitsOfARowDependOnTheRowOnly) {
  Norm norm = make_norm(65, 2048, 1, 4);
  const std::vector<float> all = run(norm, 65);
  Norm one = norm;
  one.x = rows_of(norm.x, 17, 1, 2048);
  expect_same_bits(run(one, 1), rows_of(all, 17, 1, 2048), "alone");
  for (std::int64_t i = 0; i < 2048; ++i) norm.x[static_cast<std::size_t>(16 * 2048 + i)] = kNan;
  const std::vector<float> beside_nan = run(norm, 65);
  expect_same_bits(rows_of(beside_nan, 17, 48, 2048), rows_of(all, 17, 48, 2048), "beside NaN");
  EXPECT_TRUE(std::isnan(beside_nan[16 * 2048]));
}

TEST(CudaRmsNormTest, RowsOfZerosStayZero) {
  Norm norm = make_norm(1, 64, 1, 5);
  norm.x.assign(64, 0.0F);
  for (const float v : run(norm, 1)) EXPECT_EQ(v, 0.0F);
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
