// AMX on this machine: whether it is there and granted, and the emulation that stands in for it.
#include "kernels/packed_amx.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <thread>

#include "kernels/dtype_name.h"
#include "tests/kernels/packed_support.h"

namespace millrace::kernels::testing {
namespace {

// --- Permission.

int asked = 0;
unsigned long mask = 0;
bool no() { return false; }
bool yes() { return true; }
long grant(long feature) {
  ++asked;
  return feature == 18 ? 0 : -1;
}
long refuse(long) {
  ++asked;
  return -1;
}
long answer(unsigned long* features) {
  *features = mask;
  return 0;
}
long fail(unsigned long* features) {
  *features = ~0UL;
  return -1;
}

TEST(AmxSupport, AsksTheSystemOnlyWhereThereAreInstructions) {
  asked = 0;
  EXPECT_EQ(ask_amx({&no, &grant, &answer}), AmxSupport::kNoInstructions);
  EXPECT_EQ(asked, 0);
}

TEST(AmxSupport, IsWhatTheSystemGrants) {
  mask = 1UL << 18;
  EXPECT_EQ(ask_amx({&yes, &grant, &answer}), AmxSupport::kUsable);
  EXPECT_EQ(ask_amx({&yes, &refuse, &answer}), AmxSupport::kNotPermitted);
  EXPECT_EQ(ask_amx({&yes, &grant, &fail}), AmxSupport::kNotPermitted);
  mask = 1UL << 17;  // the configuration's state alone
  EXPECT_EQ(ask_amx({&yes, &grant, &answer}), AmxSupport::kNotPermitted);
}

TEST(AmxSupport, SetsFollowIt) {
  const bool usable = amx_support() == AmxSupport::kUsable;
  EXPECT_LE(isa_supported(Isa::kAvx512Amx), usable);
  EXPECT_EQ(isa_supported(Isa::kAvx512Amx), best_isa() == Isa::kAvx512Amx);
  bool listed = false;
  for (const PackedKernels* kernels : all_packed_kernels()) listed |= kernels->name == "avx512_amx";
  EXPECT_EQ(listed, isa_supported(Isa::kAvx512Amx));
  // Who asks for the set without them gets none.
  if (isa_supported(Isa::kAvx512)) {
    EXPECT_EQ(packed_kernels("avx512").panel_of(DType::kP4_0), nullptr);
  }
}

// --- On a processor that has them.

TEST(AmxTiles, OfThisProcessor) {
  if (amx_support() == AmxSupport::kNoInstructions) GTEST_SKIP() << "this processor has no AMX";
  if (amx_support() == AmxSupport::kNotPermitted) GTEST_SKIP() << "the system permits no AMX tiles";
  if (!isa_supported(Isa::kAvx512Amx)) GTEST_SKIP() << "AMX without AVX-512 VNNI";
  const KernelTable& tiles = cpu_table(Isa::kAvx512Amx);
  EXPECT_EQ(numeric_name(tiles), "avx512");
  const TestWeight w = make_packed(make_weight(DType::kQ4_K, 64, 1024, 1));
  const std::vector<float> x = random_values(300 * 1024, 2);
  std::vector<float> y = poisoned(300 * 64);
  tiles.gemm({}, matrix(x.data(), 300, 1024), w.view, Accumulate::kStore,
             matrix(y.data(), 300, 64));
  expect_same_bits(y, reference(x, 300, w.view), "avx512_amx");
}

// --- The emulation.

#ifdef MILLRACE_AMX_EMULATED

// That the tests of the emulated sets test tiles: a product for each block of 16 rows by 16 tokens.
TEST(AmxEmulated, PanelsAreProductsOfTiles) {
  const std::vector<EmulatedSet> sets = emulated_sets();
  if (sets.empty()) GTEST_SKIP() << "the panels need AVX2";
  struct Case {
    DType dtype;
    std::int64_t k, tokens, products;
  };
  for (const Case& c : {Case{DType::kQ4_0, 512, 16, 16}, Case{DType::kQ4_0, 96, 40, 3 * 3},
                        Case{DType::kQ4_0, 96, 39, 3 * 2}, Case{DType::kQ4_0, 96, 7, 0},
                        Case{DType::kQ4_K, 256, 16, 8}, Case{DType::kQ6_K, 256, 16, 16},
                        Case{DType::kQ8_0, 32768, 16, 1024}, Case{DType::kQ8_0, 32800, 16, 0}}) {
    const TestWeight w = make_packed(make_weight(c.dtype, 32, c.k, 3));
    const std::vector<float> x = random_values(c.tokens * c.k, 4);
    std::vector<float> y = poisoned(c.tokens * 32);
    for (const EmulatedSet& set : sets) {
      const std::int64_t before = amx_emulator::products();
      set.table->gemm({}, matrix(x.data(), c.tokens, c.k), w.view, Accumulate::kStore,
                      matrix(y.data(), c.tokens, 32));
      EXPECT_EQ(amx_emulator::products() - before, 2 * c.products)
          << dtype_name(c.dtype) << " k=" << c.k << " t=" << c.tokens;
    }
  }
}

struct Config {
  std::uint8_t bytes[64] = {};

  void set(int tile, int rows, int row_bytes) {
    bytes[48 + tile] = static_cast<std::uint8_t>(rows);
    bytes[16 + 2 * tile] = static_cast<std::uint8_t>(row_bytes);
  }
};

Config small_config() {
  Config c;
  c.bytes[0] = 1;
  c.set(0, 2, 8);  // sums: 2 x 2
  c.set(1, 2, 4);  // 2 x 4 bytes
  c.set(2, 1, 8);  // 4 bytes x 2
  c.set(3, 3, 8);
  c.set(4, 2, 12);
  return c;
}

class AmxEmulator : public ::testing::Test {
 protected:
  AmxEmulator() { amx_emulator::request(18); }
  ~AmxEmulator() override { _tile_release(); }
};

// 0x80 and 0xff are -128 and -1, or 128 and 255.
TEST_F(AmxEmulator, ProductsByHand) {
  const std::uint8_t a[2][4] = {{1, 2, 3, 0xff}, {0x80, 0, 0, 0}};
  const std::uint8_t b[1][8] = {{1, 1, 1, 2, 0xff, 0, 0, 1}};
  const auto product = [&](auto&& multiply) {
    std::vector<std::int32_t> c = {10, 20, 30, 40};
    const Config config = small_config();
    _tile_loadconfig(&config);
    _tile_loadd(0, c.data(), 8);
    _tile_loadd(1, a, 4);
    _tile_loadd(2, b, 8);
    multiply();
    _tile_stored(0, c.data(), 8);
    return c;
  };
  using Sums = std::vector<std::int32_t>;
  EXPECT_EQ(product([] { _tile_dpbssd(0, 1, 2); }), (Sums{14, 18, -98, 168}));
  EXPECT_EQ(product([] { _tile_dpbuud(0, 1, 2); }), (Sums{526, 530, 158, 32680}));
  EXPECT_EQ(product([] { _tile_dpbsud(0, 1, 2); }), (Sums{14, 274, -98, -32600}));
  EXPECT_EQ(product([] { _tile_dpbusd(0, 1, 2); }), (Sums{526, 274, 158, -88}));
}

TEST_F(AmxEmulator, LoadsClearWhatTheyLeaveOut) {
  const Config config = small_config();
  _tile_loadconfig(&config);
  EXPECT_TRUE(amx_emulator::in_use());
  std::vector<std::int32_t> c = {1, 2, 3, 4};
  _tile_loadd(0, c.data(), 8);
  _tile_loadconfig(&config);  // clears the tiles
  _tile_stored(0, c.data(), 8);
  EXPECT_EQ(c, std::vector<std::int32_t>(4, 0));
  _tile_release();
  EXPECT_FALSE(amx_emulator::in_use());
}

using AmxEmulatorDeathTest = AmxEmulator;

TEST_F(AmxEmulatorDeathTest, ConfigurationsAreChecked) {
  const auto load = [](auto&& change) {
    Config c = small_config();
    change(c);
    _tile_loadconfig(&c);
  };
  load([](Config&) {});
  EXPECT_DEATH(load([](Config& c) { c.bytes[0] = 2; }), "palette 1");
  EXPECT_DEATH(load([](Config& c) { c.bytes[1] = 1; }), "restart");
  EXPECT_DEATH(load([](Config& c) { c.bytes[15] = 1; }), "reserved");
  EXPECT_DEATH(load([](Config& c) { c.set(8, 1, 4); }), "more than eight");
  EXPECT_DEATH(load([](Config& c) { c.set(7, 17, 4); }), "too large");
  EXPECT_DEATH(load([](Config& c) { c.set(7, 1, 65); }), "too large");
  EXPECT_DEATH(load([](Config& c) { c.set(7, 1, 0); }), "rows without bytes");
  EXPECT_DEATH(
      {
        amx_emulator::revoke();
        load([](Config&) {});
      },
      "without permission");
}

TEST_F(AmxEmulatorDeathTest, UsesAreChecked) {
  EXPECT_DEATH(_tile_zero(0), "before LDTILECFG");
  Config config = small_config();
  config.set(5, 2, 6);
  _tile_loadconfig(&config);
  std::int32_t memory[16] = {};
  EXPECT_DEATH(_tile_zero(8), "eight tiles");
  EXPECT_DEATH(_tile_zero(7), "leaves out");
  EXPECT_DEATH(_tile_stored(0, memory, 4), "over each other");
  EXPECT_DEATH(_tile_dpbssd(0, 0, 2), "twice");
  EXPECT_DEATH(_tile_dpbssd(0, 1, 1), "twice");
  EXPECT_DEATH(_tile_dpbssd(0, 5, 2), "broken lanes");
  EXPECT_DEATH(_tile_dpbssd(0, 3, 2), "rows of the sums");
  EXPECT_DEATH(_tile_dpbssd(0, 1, 3), "depth");
  EXPECT_DEATH(_tile_dpbssd(4, 1, 2), "columns");
  EXPECT_DEATH({ std::thread([&] { _tile_loadconfig(&config); }).join(); }, "ended with tiles");
}

#endif

}  // namespace
}  // namespace millrace::kernels::testing
