#include "kernels/dtype_name.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace millrace::kernels {
namespace {

TEST(DTypeTest, SizesOfTheBlockFormats) {
  EXPECT_EQ(row_bytes(DType::kF32, 3), 12);
  EXPECT_EQ(row_bytes(DType::kBF16, 3), 6);
  EXPECT_EQ(row_bytes(DType::kQ8_0, 64), 68);
  EXPECT_EQ(row_bytes(DType::kQ4_0, 64), 36);
  EXPECT_EQ(row_bytes(DType::kQ4_1, 64), 40);
  EXPECT_EQ(row_bytes(DType::kQ4_K, 512), 288);
  EXPECT_EQ(row_bytes(DType::kQ5_K, 512), 352);
  EXPECT_EQ(row_bytes(DType::kQ6_K, 512), 420);
  EXPECT_FALSE(row_fits(DType::kQ4_0, 48));
  EXPECT_FALSE(row_fits(DType::kQ6_K, 128));
  EXPECT_DEATH(row_bytes(DType::kQ4_0, 48), "q4_0");
}

TEST(DTypeTest, NamesGoBothWays) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_name(DType::kQ4_K), "q4_K");
  EXPECT_FALSE(dtype_from_name("q3_K"));
}

TEST(DTypeTest, HalfPrecision) {
  EXPECT_EQ(f16_to_f32(0x3c00), 1.0F);
  EXPECT_EQ(f16_to_f32(0xc000), -2.0F);
  EXPECT_EQ(f16_to_f32(0x7bff), 65504.0F);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1p-24F);
  EXPECT_EQ(f16_to_f32(0x03ff), 1023 * 0x1p-24F);
  EXPECT_EQ(f16_to_f32(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(f16_to_f32(0x7e01)));
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7c00);  // half way to the next step: rounds to infinity
  EXPECT_EQ(f32_to_f16(65519.0F), 0x7bff);
  EXPECT_EQ(f32_to_f16(0x1p-25F), 0x0000);  // half of the least subnormal: ties to even
  EXPECT_EQ(f32_to_f16(0x1.8p-25F), 0x0001);
  EXPECT_EQ(f32_to_f16(1.0F + 0x1p-11F), 0x3c00);
  EXPECT_EQ(f32_to_f16(1.0F + 0x1.8p-10F), 0x3c02);
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {  // every number survives the round trip
    const float value = f16_to_f32(static_cast<std::uint16_t>(bits));
    if (!std::isnan(value)) {
      ASSERT_EQ(f32_to_f16(value), bits);
    }
  }
}

TEST(DTypeTest, Bfloat16) {
  EXPECT_EQ(bf16_to_f32(0x3f80), 1.0F);
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1p-8F), 0x3f80);  // a tie goes to even
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1.8p-7F), 0x3f82);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  // A NaN whose upper half alone would read as infinity.
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001U)))));
}

}  // namespace
}  // namespace millrace::kernels
