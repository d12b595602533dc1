#include "kernels/packed_quantize.h"

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

std::vector<float> round_trip(const std::vector<float>& x, DType dtype) {
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<std::byte> bytes(static_cast<std::size_t>(row_bytes(dtype, n)));
  quantize_weight({reinterpret_cast<const std::byte*>(x.data()), DType::kF32, 1, n}, dtype,
                  bytes.data());
  std::vector<float> out = poisoned(n);
  reference_table().dequantize({}, {bytes.data(), dtype, 1, n}, matrix(out.data(), 1, n));
  return out;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  }
  return sum;
}

TEST(QuantizeWeight, Q8_0IsWithinHalfAStep) {
  const std::vector<float> x = random_values(32 * 50, 1);
  const std::vector<float> y = round_trip(x, DType::kQ8_0);
  for (std::size_t at = 0; at < x.size(); at += 32) {
    float most = 0;
    for (std::size_t i = at; i < at + 32; ++i) most = std::max(most, std::fabs(x[i]));
    // Half precision moves the largest value by up to 2^-11 of itself.
    for (std::size_t i = at; i < at + 32; ++i) {
      ASSERT_NEAR(y[i], x[i], most * (0.501 / 127 + 0x1p-11));
    }
  }
}

TEST(QuantizeWeight, WhatFitsIsKept) {
  std::vector<float> x(64);
  for (int i = 0; i < 32; ++i) {
    x[static_cast<std::size_t>(i)] = 0.25F * static_cast<float>(i % 16 - 8);
    x[static_cast<std::size_t>(32 + i)] = -0.25F * static_cast<float>(i % 16 - 8);
  }
  EXPECT_EQ(round_trip(x, DType::kQ4_0), x);
  EXPECT_EQ(round_trip(std::vector<float>(32, 0.0F), DType::kQ4_0), std::vector<float>(32, 0.0F));
  EXPECT_EQ(round_trip(std::vector<float>(32, 0.0F), DType::kQ8_0), std::vector<float>(32, 0.0F));
}

// No scale in a fine sweep does better by more than what the search's grid can miss, and the usual
// choice, the largest value at 8 steps, does not do better at all.
TEST(QuantizeWeight, Q4_0FindsANearlyBestScale) {
  double ours = 0, largest = 0, best = 0;
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(32);
    for (float& v : x) v = normal(rng);
    const double error = squared_error(round_trip(x, DType::kQ4_0), x);
    const auto with = [&](float d) {
      std::vector<float> y(32);
      for (std::size_t i = 0; i < 32; ++i) {
        y[i] = d * std::min(7.0F, std::max(-8.0F, std::nearbyint(x[i] / d)));
      }
      return squared_error(y, x);
    };
    float extreme = 0;
    for (const float v : x) extreme = std::fabs(v) > std::fabs(extreme) ? v : extreme;
    double sweep = 1e9;
    for (float d = 0.01F; d < 1.0F; d += 0.001F) sweep = std::min({sweep, with(d), with(-d)});
    ours += error;
    largest += with(f16_to_f32(f32_to_f16(extreme / -8)));
    best += sweep;
  }
  EXPECT_LT(ours, largest);
  EXPECT_LT(ours, 1.05 * best);
}

TEST(QuantizeWeight, PlainTypesAndNumbersThatAreNone) {
  const std::vector<float> x = random_values(64, 3);
  std::vector<std::uint16_t> bf16(64), f16(64);
  std::vector<float> as_bf16(64), as_f16(64);
  for (std::size_t i = 0; i < 64; ++i) {
    bf16[i] = f32_to_bf16(x[i]);
    f16[i] = f32_to_f16(x[i]);
    as_bf16[i] = bf16_to_f32(bf16[i]);
    as_f16[i] = f16_to_f32(f16[i]);
  }
  const auto bytes_of = [](const void* data, DType dtype) {
    std::vector<std::byte> out(2 * 18);
    quantize_weight({static_cast<const std::byte*>(data), dtype, 2, 32}, DType::kQ4_0, out.data());
    return out;
  };
  EXPECT_EQ(bytes_of(bf16.data(), DType::kBF16), bytes_of(as_bf16.data(), DType::kF32));
  EXPECT_EQ(bytes_of(f16.data(), DType::kF16), bytes_of(as_f16.data(), DType::kF32));

  std::vector<float> bad = x;
  bad[5] = kNan;
  for (const DType dtype : {DType::kQ4_0, DType::kQ8_0}) {
    const std::vector<float> y = round_trip(bad, dtype);
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_TRUE(std::isfinite(y[40]));
  }
  EXPECT_DEATH(bytes_of(x.data(), DType::kQ4_0), "q4_0");
}

}  // namespace
}  // namespace millrace::kernels::testing
