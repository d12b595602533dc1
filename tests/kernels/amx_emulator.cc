#include "tests/kernels/amx_emulator.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace millrace::amx_emulator {
namespace {

constexpr int kTiles = 8;
constexpr int kMostRows = 16;
constexpr int kMostBytes = 64;
constexpr long kTileData = 18;

std::atomic<bool> granted{false};
std::atomic<std::int64_t> all_products{0};

void must(bool rule, const char* words) {
  if (rule) return;
  std::fprintf(stderr, "AMX emulator: %s\n", words);
  std::abort();
}

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  std::array<std::array<std::uint8_t, kMostBytes>, kMostRows> data = {};
};

struct State {
  bool configured = false;
  std::array<Tile, kTiles> tiles = {};

  ~State() { must(!configured, "a thread ended with tiles in use"); }
};
thread_local State state;

Tile& tile_of(int index) {
  must(index >= 0 && index < kTiles, "there are eight tiles");
  must(state.configured, "a tile before LDTILECFG");
  Tile& tile = state.tiles[static_cast<std::size_t>(index)];
  must(tile.rows > 0, "a tile that the configuration leaves out");
  return tile;
}

std::int32_t widened(std::uint8_t byte, bool is_signed) {
  return is_signed ? static_cast<std::int8_t>(byte) : byte;
}

// The instruction's DPBD for one lane: sums wrap.
std::uint32_t dot4(std::uint32_t sum, const std::uint8_t* a, const std::uint8_t* b, bool a_signed,
                   bool b_signed) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<std::uint32_t>(widened(a[i], a_signed) * widened(b[i], b_signed));
  }
  return sum;
}

}  // namespace

long request(long feature) {
  if (feature != kTileData) return -1;
  granted = true;
  return 0;
}

long permitted(unsigned long* features) {
  *features = 0x2e7 | (granted ? 1UL << kTileData : 0);
  return 0;
}

void revoke() { granted = false; }

void load_config(const void* config) {
  must(granted, "tiles without permission");
  std::array<std::uint8_t, 64> bytes;
  std::memcpy(bytes.data(), config, bytes.size());
  must(bytes[0] == 1, "LDTILECFG: palette 1 is the only one");
  must(bytes[1] == 0, "LDTILECFG: a restart row");
  for (std::size_t i = 2; i < 16; ++i) must(bytes[i] == 0, "LDTILECFG: a reserved byte");
  for (std::size_t i = 0; i < 16; ++i) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, &bytes[16 + 2 * i], sizeof row_bytes);
    const int rows = bytes[48 + i];
    must(i < kTiles || (rows == 0 && row_bytes == 0), "LDTILECFG: more than eight tiles");
    must(rows <= kMostRows && row_bytes <= kMostBytes, "LDTILECFG: a tile too large");
    must((rows == 0) == (row_bytes == 0), "LDTILECFG: rows without bytes or bytes without rows");
    if (i < kTiles) state.tiles[i] = {rows, row_bytes, {}};
  }
  state.configured = true;
}

void release() {
  state.configured = false;
  state.tiles = {};
}

void zero(int tile) { tile_of(tile).data = {}; }

void load(int tile, const void* base, long stride) {
  Tile& t = tile_of(tile);
  t.data = {};
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(t.data[static_cast<std::size_t>(r)].data(),
                static_cast<const char*>(base) + r * stride, static_cast<std::size_t>(t.row_bytes));
  }
}

void store(int tile, void* base, long stride) {
  const Tile& t = tile_of(tile);
  must(stride >= t.row_bytes || stride <= -t.row_bytes || t.rows == 1,
       "TILESTORED: rows over each other");
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(static_cast<char*>(base) + r * stride, t.data[static_cast<std::size_t>(r)].data(),
                static_cast<std::size_t>(t.row_bytes));
  }
}

void multiply(int sums, int a, int b, bool a_signed, bool b_signed) {
  must(sums != a && sums != b && a != b, "TDPB: one tile twice");
  Tile& c = tile_of(sums);
  const Tile& left = tile_of(a);
  const Tile& right = tile_of(b);
  must(c.row_bytes % 4 == 0 && left.row_bytes % 4 == 0 && right.row_bytes % 4 == 0,
       "TDPB: rows of broken lanes");
  must(c.rows == left.rows, "TDPB: rows of the sums and of the first factor");
  must(left.row_bytes / 4 == right.rows, "TDPB: depth of the factors");
  must(c.row_bytes == right.row_bytes, "TDPB: columns of the sums and of the second factor");
  for (std::size_t m = 0; m < static_cast<std::size_t>(c.rows); ++m) {
    for (std::size_t k = 0; k < static_cast<std::size_t>(right.rows); ++k) {
      for (std::size_t n = 0; n < static_cast<std::size_t>(c.row_bytes); n += 4) {
        std::uint32_t sum;
        std::memcpy(&sum, &c.data[m][n], sizeof sum);
        sum = dot4(sum, &left.data[m][4 * k], &right.data[k][n], a_signed, b_signed);
        std::memcpy(&c.data[m][n], &sum, sizeof sum);
      }
    }
  }
  all_products.fetch_add(1, std::memory_order_relaxed);
}

bool in_use() { return state.configured; }

std::int64_t products() { return all_products; }

}  // namespace millrace::amx_emulator
