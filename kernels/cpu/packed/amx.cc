// Panels of the packed GEMM (kernels/packed_gemm.h) on the matrix unit of AMX: 16 weight rows by
// groups of 16 tokens.
//
// A block of 32 inputs is one TDPBSSD: a tile of 16 tokens by 32 bytes, straight from the quantised
// rows, times a tile of 8 lines of the unpacked weights, whose groups of four inputs by 16 rows are
// the form that it takes. Types with a scale for each 16 inputs take two of half the depth. The
// integers go through memory to vector registers, where they are scaled and added in the order of
// the definition, so the bits are those of every other set that fuses; 16 registers hold the sums
// of a group over a range of K.
//
// Compiled for processors and, with MILLRACE_AMX_EMULATOR, against an emulation of the tiles.
#include <immintrin.h>

#include "kernels/cpu/packed/panels.h"

#ifdef MILLRACE_AMX_EMULATOR
#include MILLRACE_AMX_EMULATOR
#endif

#define MILLRACE_STRING(x) MILLRACE_STRING_(x)
#define MILLRACE_STRING_(x) #x

namespace millrace::kernels::MILLRACE_ISA {
namespace {

constexpr int kRows = static_cast<int>(kPackedRows);

// What LDTILECFG reads (Intel SDM, volume 2). Palette 1: eight tiles of up to 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0-3 sums, 4 and 5 tokens, 6 and 7 weights, so that four steps are under way together.
constexpr TileConfig tile_config(int inputs) {
  TileConfig config = {.palette = 1, .start_row = 0, .reserved = {}, .row_bytes = {}, .rows = {}};
  for (int tile = 0; tile < 8; ++tile) {
    const bool tokens = tile == 4 || tile == 5;
    config.row_bytes[tile] = static_cast<std::uint16_t>(tokens ? inputs : 4 * kRows);
    config.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? kPanelTokens : inputs / 4);
  }
  return config;
}

// Dot products of one step: every token by every row.
using StepDots = std::int32_t[kPanelTokens][kRows];

// Steps that are issued before the first of them is waited for. A step alone takes some 150 clocks
// from load to load (two loads, the product, a store), four are scaled in about as many.
constexpr int kAhead = 4;

// A group of tokens over the unpacked blocks. A step is a block, or half of one.
template <class Format>
struct GroupRange {
  const UnpackedBlock* w;
  const QuantizedBlock* x;  // of the first token
  std::int64_t stride;      // to the next token's, in blocks
  int steps;

  static constexpr int kStepInputs = static_cast<int>(kQuantBlock) / Format::kHalves;

  // dots[i] of steps [first, first + kAhead), as many as there are.
  MILLRACE_ALWAYS_INLINE void issue(int first, StepDots* dots) const;
  // Adds step `step` to the sums of all tokens.
  MILLRACE_ALWAYS_INLINE void scale(int step, const StepDots& dots, Vec (&y)[kPanelTokens]) const;
};

template <class Format>
MILLRACE_ALWAYS_INLINE void GroupRange<Format>::issue(int first, StepDots* dots) const {
// The tiles' numbers are parts of the instructions.
#define MILLRACE_STEP(i, tokens, weights)                                                      \
  if (first + i < steps) {                                                                     \
    const int block = (first + i) / Format::kHalves;                                           \
    const int half = (first + i) % Format::kHalves;                                            \
    _tile_zero(i);                                                                             \
    _tile_loadd(tokens, x[block].q + kStepInputs * half,                                       \
                stride * static_cast<std::int64_t>(sizeof(QuantizedBlock)));                   \
    _tile_loadd(weights, w[block].values[kStepInputs / 4 * half], sizeof(w[block].values[0])); \
    _tile_dpbssd(i, tokens, weights);                                                          \
    _tile_stored(i, dots[i], sizeof(dots[i][0]));                                              \
  }
  static_assert(kAhead == 4);
  MILLRACE_STEP(0, 4, 6)
  MILLRACE_STEP(1, 5, 7)
  MILLRACE_STEP(2, 4, 6)
  MILLRACE_STEP(3, 5, 7)
#undef MILLRACE_STEP
}

MILLRACE_ALWAYS_INLINE Vec floats(const std::int32_t* dots) {
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    Ints part;
    std::memcpy(&part, dots + i * kPartLanes, sizeof part);
    out.part[i] = __builtin_convertvector(part, Part);
  }
  return out;
}

template <class Format>
MILLRACE_ALWAYS_INLINE void GroupRange<Format>::scale(int step, const StepDots& dots,
                                                      Vec (&y)[kPanelTokens]) const {
  const UnpackedBlock& weights = w[step / Format::kHalves];
  const QuantizedBlock* tokens = x + step / Format::kHalves;
  const Vec d = load(weights.scale[step % Format::kHalves]);
  MILLRACE_UNROLL
  for (int n = 0; n < kPanelTokens; ++n) {
    y[n] = fma(floats(dots[n]), mul(d, set1(tokens[n * stride].scale)), y[n]);
  }
  if constexpr (Format::kMinimum) {
    const Vec minimum = load(weights.minimum);
    MILLRACE_UNROLL
    for (int n = 0; n < kPanelTokens; ++n) {
      y[n] = fma(minimum, set1(tokens[n * stride].sum), y[n]);
    }
  }
}

// Adds the range to sums [kPanelTokens, kRows], or begins them.
template <class Format>
MILLRACE_ALWAYS_INLINE void add_range(const GroupRange<Format>& range, bool begin,
                                      Prefetch& prefetch, float* sums) {
  alignas(64) StepDots dots[2][kAhead];
  Vec y[kPanelTokens];
  MILLRACE_UNROLL
  for (int n = 0; n < kPanelTokens; ++n) y[n] = begin ? set1(0.0F) : load(sums + n * kRows);
  range.issue(0, dots[0]);
  for (int first = 0, turn = 0; first < range.steps; first += kAhead, turn ^= 1) {
    range.issue(first + kAhead, dots[turn ^ 1]);
    for (int i = 0; i < kAhead && first + i < range.steps; ++i) {
      range.scale(first + i, dots[turn][i], y);
      if ((first + i) % Format::kHalves == 0) prefetch.next();
    }
  }
  MILLRACE_UNROLL
  for (int n = 0; n < kPanelTokens; ++n) store(sums + n * kRows, y[n]);
}

// A PackedPanelFn. The tiles belong to the thread only while it is in here: a processor without
// them in use has less to save when threads change.
template <class Format>
void run_panel(const PackedPanel& a) {
  static constexpr TileConfig kConfig = tile_config(GroupRange<Format>::kStepInputs);
  _tile_loadconfig(&kConfig);
  run_ranges<Format, Unpacked::kValues>(
      a, [&](const UnpackedBlock* w, std::int64_t first, std::int64_t count, Prefetch& prefetch)
             __attribute__((always_inline)) {
               // gcc's tile loads do not say that they read memory.
               asm volatile("" ::: "memory");
               const int steps = static_cast<int>(count) * Format::kHalves;
               for (std::int64_t t = 0; t < a.tokens; t += kPanelTokens) {
                 add_range<Format>({w, a.x[t / kPanelTokens] + first, a.blocks, steps}, first == 0,
                                   prefetch, a.sums + t * kRows);
               }
             });
  _tile_release();
}

}  // namespace

// `rest` with panels on tiles; its tiles in the other sense take what is no panel.
PackedKernels packed_kernels(const PackedKernels& rest) {
  PackedKernels kernels = rest;
  kernels.name = MILLRACE_STRING(MILLRACE_ISA);
  PackedPanelFn* const panels[kPackedTypes] = {&run_panel<P8_0>, &run_panel<P4_0>,
                                               &run_panel<P4_1>, &run_panel<P4_K>,
                                               &run_panel<P5_K>, &run_panel<P6_K>};
  for (int i = 0; i < kPackedTypes; ++i) kernels.panels[i] = panels[i];
  kernels.panel_group = kPanelTokens;
  // A group takes as long as five or six tokens in tiles, whether it is full or not, and to unpack
  // the rows as three or four (docs/performance-log.md).
  kernels.panel_least = 8;
  return kernels;
}

}  // namespace millrace::kernels::MILLRACE_ISA
