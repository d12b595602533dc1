#include "kernels/packed.h"

#include <algorithm>

#include "kernels/dtype_name.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

std::uint8_t byte_at(const TestWeight& w, std::int64_t i) {
  return static_cast<std::uint8_t>(w.view.data[i]);
}

// Where each byte of a unit comes from, written out by hand for the simplest type: 16 scales, then
// four lines in which row r has bytes 4i..4i+3 of its block at 64 i + 4 r.
TEST(PackedLayout, P4_0) {
  const TestWeight source = make_weight(DType::kQ4_0, 32, 64, 1);
  const TestWeight packed = make_packed(source);
  EXPECT_EQ(packed.view.dtype, DType::kP4_0);
  for (std::int64_t tile = 0; tile < 2; ++tile) {
    for (std::int64_t block = 0; block < 2; ++block) {
      const std::int64_t unit = (tile * 2 + block) * 288;
      for (std::int64_t r = 0; r < 16; ++r) {
        const std::int64_t from = (tile * 16 + r) * 36 + block * 18;
        ASSERT_EQ(byte_at(packed, unit + 2 * r), byte_at(source, from));
        ASSERT_EQ(byte_at(packed, unit + 2 * r + 1), byte_at(source, from + 1));
        for (std::int64_t i = 0; i < 16; ++i) {
          ASSERT_EQ(byte_at(packed, unit + 32 + 64 * (i / 4) + 4 * r + i % 4),
                    byte_at(source, from + 2 + i));
        }
      }
    }
  }
}

TEST(PackedLayout, P8_0IsUnsigned) {
  const TestWeight source = make_weight(DType::kQ8_0, 16, 32, 2);
  const TestWeight packed = make_packed(source);
  for (std::int64_t r = 0; r < 16; ++r) {
    for (std::int64_t i = 0; i < 32; ++i) {
      ASSERT_EQ(byte_at(packed, 32 + 64 * (i / 4) + 4 * r + i % 4),
                byte_at(source, 34 * r + 2 + i) ^ 0x80);
    }
  }
}

TEST(Packed, UnpacksToTheSameBytes) {
  for (const DType dtype : packable_dtypes()) {
    const TestWeight source = make_weight(dtype, 48, 512, 3);
    const TestWeight packed = make_packed(source);
    EXPECT_EQ(packed.view.bytes(), source.view.bytes());
    EXPECT_EQ(source_dtype(packed.view.dtype), dtype);
    EXPECT_TRUE(is_packed(packed.view.dtype));
    EXPECT_FALSE(is_packed(dtype));
    std::vector<std::byte> row(static_cast<std::size_t>(source.view.row_bytes()));
    for (std::int64_t n = 0; n < 48; ++n) {
      unpack_row(packed.view, n, row.data());
      ASSERT_TRUE(std::equal(row.begin(), row.end(), source.view.row(n)))
          << dtype_name(dtype) << " row " << n;
    }
    // A part of the rows is the packed form of that part.
    unpack_row(packed.view.slice_rows(32, 16), 5, row.data());
    EXPECT_TRUE(std::equal(row.begin(), row.end(), source.view.row(37))) << dtype_name(dtype);
  }
}

TEST(Packed, OnlyWholeTilesOfQuantisedTypes) {
  EXPECT_TRUE(can_pack(DType::kQ4_0, 16, 32));
  EXPECT_FALSE(can_pack(DType::kQ4_0, 24, 32));
  EXPECT_FALSE(can_pack(DType::kQ4_0, 16, 48));
  EXPECT_FALSE(can_pack(DType::kQ6_K, 16, 128));
  EXPECT_FALSE(can_pack(DType::kQ4_0, 0, 32));
  EXPECT_FALSE(can_pack(DType::kBF16, 16, 32));
  EXPECT_FALSE(can_pack(DType::kP4_0, 16, 32));
  EXPECT_FALSE(packed_dtype(DType::kF32));
  EXPECT_DEATH(source_dtype(DType::kQ4_0), "q4_0");
  EXPECT_DEATH(pack_weight({nullptr, DType::kQ4_0, 8, 32}, nullptr), "q4_0");
}

class PackedRowsTest : public ::testing::TestWithParam<const KernelTable*> {};
std::vector<const KernelTable*> all_sets() {
  auto sets = cpu_sets();
  sets.push_back(&reference_table());
  return sets;
}
INSTANTIATE_TEST_SUITE_P(Sets, PackedRowsTest, ::testing::ValuesIn(all_sets()), set_name);

TEST_P(PackedRowsTest, HaveTheValuesOfTheirSource) {
  for (const DType dtype : packable_dtypes()) {
    const TestWeight w = make_packed(make_weight(dtype, 32, 768, 4));
    std::vector<float> out = poisoned(32 * 768);
    ThreadPool pool(2);
    GetParam()->dequantize({&pool}, w.view, matrix(out.data(), 32, 768));
    expect_same_bits(out, w.values, std::string(dtype_name(dtype)));

    const std::vector<std::int32_t> ids = {31, 0, 17, 17};
    std::vector<float> rows = poisoned(4 * 768);
    GetParam()->embedding({}, ids, w.view, matrix(rows.data(), 4, 768));
    for (std::size_t t = 0; t < ids.size(); ++t) {
      const auto row = w.values.begin() + ids[t] * 768;
      expect_same_bits({rows.begin() + static_cast<std::ptrdiff_t>(t * 768),
                        rows.begin() + static_cast<std::ptrdiff_t>((t + 1) * 768)},
                       {row, row + 768}, std::string(dtype_name(dtype)));
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::testing
