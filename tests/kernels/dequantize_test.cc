#include "kernels/dequantize.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/dtype_name.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class DequantizeTest : public EachSet {};
MILLRACE_TEST_EACH_SET(DequantizeTest);

using Block = std::vector<std::uint8_t>;

void put_half(Block& b, std::size_t at, float v) {
  const std::uint16_t bits = f32_to_f16(v);
  std::memcpy(&b[at], &bits, 2);
}

std::vector<float> run(const KernelTable& table, DType dtype, const Block& bytes,
                       std::int64_t cols) {
  const GuardedBytes guarded(bytes.size());
  std::memcpy(guarded.data(), bytes.data(), bytes.size());
  const auto rows = static_cast<std::int64_t>(bytes.size()) / row_bytes(dtype, cols);
  std::vector<float> out = poisoned(rows * cols);
  table.dequantize({}, {guarded.data(), dtype, rows, cols}, matrix(out.data(), rows, cols));
  return out;
}

std::vector<const KernelTable*> every_set() {
  auto sets = cpu_sets();
  sets.push_back(&reference_table());
  return sets;
}

// Blocks built value by value from the layouts, the expected numbers from the formulas by hand.

TEST(DequantizeHand, Q8_0) {
  Block b(34);
  put_half(b, 0, 0.5F);
  for (int j = 0; j < 32; ++j) b[2 + j] = static_cast<std::uint8_t>(j * 8 - 128);
  for (const KernelTable* table : every_set()) {
    const auto v = run(*table, DType::kQ8_0, b, 32);
    for (int j = 0; j < 32; ++j) ASSERT_EQ(v[j], 0.5F * (j * 8 - 128)) << table->name;
  }
}

TEST(DequantizeHand, Q4_0AndQ4_1) {
  Block q0(18);
  Block q1(20);
  put_half(q0, 0, -2.0F);
  put_half(q1, 0, 0.25F);
  put_half(q1, 2, 10.0F);
  for (int j = 0; j < 16; ++j) {  // low nibble j, high nibble 15 - j
    q0[2 + j] = q1[4 + j] = static_cast<std::uint8_t>(j | ((15 - j) << 4));
  }
  for (const KernelTable* table : every_set()) {
    const auto v0 = run(*table, DType::kQ4_0, q0, 32);
    const auto v1 = run(*table, DType::kQ4_1, q1, 32);
    for (int j = 0; j < 16; ++j) {
      ASSERT_EQ(v0[j], -2.0F * (j - 8)) << table->name;
      ASSERT_EQ(v0[j + 16], -2.0F * (7 - j)) << table->name;
      ASSERT_EQ(v1[j], 10 + 0.25F * j) << table->name;
      ASSERT_EQ(v1[j + 16], 10 + 0.25F * (15 - j)) << table->name;
    }
  }
}

// Packs 6-bit scales and minima as Q4_K and Q5_K do: the inverse of the readers' formula, written
// apart.
void put_scales(Block& b, std::size_t at, const int (&scale)[8], const int (&min)[8]) {
  for (std::size_t j = 0; j < 4; ++j) {
    b[at + j] = static_cast<std::uint8_t>(scale[j] | ((scale[j + 4] >> 4) << 6));
    b[at + 4 + j] = static_cast<std::uint8_t>(min[j] | ((min[j + 4] >> 4) << 6));
    b[at + 8 + j] = static_cast<std::uint8_t>((scale[j + 4] & 15) | ((min[j + 4] & 15) << 4));
  }
}

constexpr int kScales[8] = {1, 2, 63, 33, 47, 16, 5, 63};
constexpr int kMins[8] = {0, 63, 7, 32, 17, 48, 62, 1};

TEST(DequantizeHand, Q4_K) {
  Block b(144);
  put_half(b, 0, 0.5F);
  put_half(b, 2, 0.25F);
  put_scales(b, 4, kScales, kMins);
  const auto quant = [](int j, int l) { return (3 * j + l) & 15; };  // sub-block j, value l
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      b[16 + 32 * g + l] = static_cast<std::uint8_t>(quant(2 * g, l) | (quant(2 * g + 1, l) << 4));
    }
  }
  for (const KernelTable* table : every_set()) {
    const auto v = run(*table, DType::kQ4_K, b, 256);
    for (int j = 0; j < 8; ++j) {
      for (int l = 0; l < 32; ++l) {
        ASSERT_EQ(v[32 * j + l], 0.5F * kScales[j] * quant(j, l) - 0.25F * kMins[j])
            << table->name << " sub-block " << j << " value " << l;
      }
    }
  }
}

TEST(DequantizeHand, Q5_K) {
  Block b(176);
  put_half(b, 0, 0.5F);
  put_half(b, 2, 0.25F);
  put_scales(b, 4, kScales, kMins);
  const auto quant = [](int j, int l) { return (5 * j + 3 * l) & 31; };
  for (int j = 0; j < 8; ++j) {
    for (int l = 0; l < 32; ++l) {
      const int q = quant(j, l);
      b[48 + 32 * (j / 2) + l] |= static_cast<std::uint8_t>((q & 15) << (4 * (j % 2)));
      b[16 + l] |= static_cast<std::uint8_t>((q >> 4) << j);
    }
  }
  for (const KernelTable* table : every_set()) {
    const auto v = run(*table, DType::kQ5_K, b, 256);
    for (int j = 0; j < 8; ++j) {
      for (int l = 0; l < 32; ++l) {
        ASSERT_EQ(v[32 * j + l], 0.5F * kScales[j] * quant(j, l) - 0.25F * kMins[j])
            << table->name << " sub-block " << j << " value " << l;
      }
    }
  }
}

TEST(DequantizeHand, Q6_K) {
  Block b(210);
  put_half(b, 208, 0.125F);
  const auto quant = [](int i) { return (7 * i) & 63; };
  const auto scale = [](int s) { return s * 13 - 100; };  // 16 groups of 16 values
  for (int s = 0; s < 16; ++s) b[192 + s] = static_cast<std::uint8_t>(scale(s));
  for (int h = 0; h < 2; ++h) {
    for (int l = 0; l < 32; ++l) {
      const int q0 = quant(128 * h + l);
      const int q1 = quant(128 * h + 32 + l);
      const int q2 = quant(128 * h + 64 + l);
      const int q3 = quant(128 * h + 96 + l);
      b[64 * h + l] = static_cast<std::uint8_t>((q0 & 15) | ((q2 & 15) << 4));
      b[64 * h + 32 + l] = static_cast<std::uint8_t>((q1 & 15) | ((q3 & 15) << 4));
      b[128 + 32 * h + l] =
          static_cast<std::uint8_t>(q0 >> 4 | (q1 >> 4) << 2 | (q2 >> 4) << 4 | (q3 >> 4) << 6);
    }
  }
  for (const KernelTable* table : every_set()) {
    const auto v = run(*table, DType::kQ6_K, b, 256);
    for (int i = 0; i < 256; ++i) {
      ASSERT_EQ(v[i], 0.125F * scale(i / 16) * (quant(i) - 32)) << table->name << " value " << i;
    }
  }
}

// Random blocks against the numpy dequantiser of the gguf package; scripts/make_quant_golden.py.
TEST(DequantizeGolden, EqualsGgufPy) {
  std::ifstream file(MILLRACE_SOURCE_DIR "/tests/golden/quant_blocks.json");
  ASSERT_TRUE(file);
  const auto golden = nlohmann::json::parse(file);
  std::size_t types = 0;
  for (const auto& [name, entry] : golden.items()) {
    const auto dtype = dtype_from_name(name);
    ASSERT_TRUE(dtype) << name;
    ++types;
    const auto bytes = entry["bytes"].get<Block>();
    const auto bits = entry["f32_bits"].get<std::vector<std::uint32_t>>();
    std::vector<float> want;
    for (const std::uint32_t b : bits) want.push_back(std::bit_cast<float>(b));
    for (const KernelTable* table : every_set()) {
      expect_same_bits(run(*table, *dtype, bytes, entry["cols"].get<std::int64_t>()), want,
                       name + " " + std::string(table->name));
    }
  }
  EXPECT_EQ(types, 9U);
}

TEST_P(DequantizeTest, HasTheBitsOfTheReference) {
  for (const DType dtype : all_dtypes()) {
    const TestWeight w = make_weight(dtype, 40, 768, 1);
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      std::vector<float> out = poisoned(40 * 768);
      set().dequantize({&pool}, w.view, matrix(out.data(), 40, 768));
      expect_same_bits(out, w.values, std::string(dtype_name(dtype)));
    }
  }
}

// Every half-precision number, subnormals and infinities among them. NaN payloads are not compared.
TEST_P(DequantizeTest, EveryHalf) {
  Block bytes(2 * 65536);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    bytes[2 * i] = static_cast<std::uint8_t>(i);
    bytes[2 * i + 1] = static_cast<std::uint8_t>(i >> 8);
  }
  const auto v = run(set(), DType::kF16, bytes, 65536);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const float want = f16_to_f32(static_cast<std::uint16_t>(i));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(v[i]));
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(v[i]), std::bit_cast<std::uint32_t>(want)) << i;
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::testing
