// Dot products of packed weights (kernels/packed.h) with activations rounded to 8 bits.
//
// Each block of 32 activations gets a scale s = max|x| / 127 and values q = round(x * (127 /
// max|x|)), to nearest, ties to even. Then for every row and token, over the blocks of K in
// ascending order, starting from +0:
//
//   P8_0, P4_0   y = fma(float(dot), d * s, y)        dot = sum of weight quant * q, exact in int32
//   P4_1         y = fma(float(dot), d * s, y), y = fma(m, t, y)         t = s * float(sum of q)
//   P4_K, P5_K   the same with d * scale for d and -(dmin * min) for m
//   P6_K         y = fma(float(dot), (d * scale) * s, y) for the first 16 values, then for the rest
//
// So the bits depend on the row, the token and K alone (contract C1), and are the same in all sets
// that fuse; portable multiplies and adds apart. Quants of Q4_0, Q6_K and Q8_0 count from their
// middle (n - 8, n - 32, q). A block whose largest magnitude is below 2^-100 counts as zeros. A
// block with a NaN or an infinity makes every y of its token NaN.
#pragma once

#include <cstdint>

#include "kernels/gate_up.h"
#include "kernels/gemm.h"
#include "kernels/grouped_gemm.h"
#include "kernels/packed.h"

namespace millrace::kernels {

inline constexpr std::int64_t kQuantBlock = 32;

// 32 activations as the kernels read them. Unsigned weight quants are offset by o from the values
// they stand for; the start values make up for it: -o * (sum of q) over the block, or over each
// half where the weight has a scale for each 16 values.
struct QuantizedBlock {
  std::int8_t q[kQuantBlock];
  float scale;            // s
  float sum;              // t
  std::int32_t start[2];  // [0] alone unless halves
};
static_assert(sizeof(QuantizedBlock) == 48);

struct QuantizeMode {
  std::int32_t offset = 0;
  bool halves = false;
  bool operator==(const QuantizeMode&) const = default;
};
QuantizeMode quantize_mode(DType packed);

inline constexpr int kMaxTileTokens = 8;
inline constexpr int kPanelTokens = 16;  // of the tiles of AMX
inline constexpr int kPackedTypes = 6;

// One tile: 16 weight rows, or 16 of each of two weights or places of one, by some tokens, over the
// whole of K.
struct PackedTile {
  const std::byte* w[2] = {};
  std::int64_t blocks = 0;  // K / 32
  const QuantizedBlock* x[kMaxTileTokens] = {};
  float* y[2] = {};  // 16 values for each token, y_stride apart
  std::int64_t y_stride = 0;
  bool add = false;
  // What will be wanted soon: in each block, so many bytes so far ahead of the beginning of w, the
  // next ones in the next block.
  std::int64_t prefetch_ahead = 0;
  std::int64_t prefetch_bytes = 0;
};

using PackedTileFn = void(const PackedTile&);

// One panel: 16 weight rows by groups of tokens, over the whole of K. The rows are unpacked once
// for all tokens, so it pays from some tokens on.
struct PackedPanel {
  const std::byte* w = nullptr;
  std::int64_t blocks = 0;  // K / 32
  // Of each group (PackedKernels::panel_group) the row of its first token; those of the others
  // follow, `blocks` blocks apart. The last group is full, too, however few tokens are left for it.
  const QuantizedBlock* const* x = nullptr;
  std::int64_t tokens = 0;
  float* sums = nullptr;  // [tokens rounded up to groups, 16], 64-byte aligned, for its own use
  float* y = nullptr;     // 16 values for each token, y_stride apart
  std::int64_t y_stride = 0;
  bool add = false;
  // As a tile's, in each block of each pass (PackedKernels::panel_pass).
  std::int64_t prefetch_ahead = 0;
  std::int64_t prefetch_bytes = 0;
};

using PackedPanelFn = void(const PackedPanel&);
// y = silu(gate) * up, 16 values each.
using GateFn = void(const float* gate, const float* up, float* y);
using QuantizeFn = void(const float* x, std::int64_t blocks, QuantizeMode mode,
                        QuantizedBlock* out);

// What an instruction set brings: kernels/cpu/packed.
struct PackedKernels {
  std::string_view name;
  int tile_tokens = 0;  // at most kMaxTileTokens
  int pair_tokens = 0;  // of tiles of twice 16 rows
  QuantizeFn* quantize = nullptr;
  GateFn* gate = nullptr;
  PackedTileFn* tiles[kPackedTypes][2][kMaxTileTokens] = {};  // [type - kP8_0][pair][tokens - 1]
  PackedPanelFn* panels[kPackedTypes] = {};  // [type - kP8_0]; null: tiles are the best there is
  int panel_group = 1;                       // tokens whose rows a panel wants beside each other
  int panel_least = 0;  // tokens; fewer, or fewer in the last group, are better off in tiles

  // Null where there are none of this kind.
  PackedTileFn* const* tiles_of(DType packed, bool pair) const {
    const auto* of_type = tiles[type_index(packed)][pair ? 1 : 0];
    return of_type[0] == nullptr ? nullptr : of_type;
  }
  PackedPanelFn* panel_of(DType packed) const { return panels[type_index(packed)]; }
  // Tokens that a panel multiplies at once.
  int panel_pass() const { return panel_group > tile_tokens ? panel_group : tile_tokens; }
  // Most tokens of tiles in one pass over a weight.
  int pass_tokens(DType packed) const {
    return tiles_of(packed, true) != nullptr ? pair_tokens : tile_tokens;
  }

 private:
  static int type_index(DType packed) {
    return static_cast<int>(packed) - static_cast<int>(DType::kP8_0);
  }
};

// The kernels that the set `set` ("portable", "avx2", "avx512", "avx512_amx") runs on this CPU,
// which may have more than the set asks for (VNNI).
const PackedKernels& packed_kernels(std::string_view set);
// All that this CPU can run, for tests and benchmarks.
std::span<const PackedKernels* const> all_packed_kernels();

// gemm, grouped_gemm and gate_up for packed weights. grouped_gemm leaves experts of other types
// out; the weights of gate_up are all of one packed type. Quantised rows lie in context.workspace,
// or in the calling thread's scratch where there is none; more rows than fit are worked through in
// turn.
void packed_gemm(const PackedKernels& kernels, const Context& context, MatrixView<const float> x,
                 const WeightView& w, Accumulate accumulate, MatrixView<float> y);
void packed_grouped_gemm(const PackedKernels& kernels, const Context& context,
                         const GroupedGemmArgs& args);
void packed_gate_up(const PackedKernels& kernels, const Context& context, const GateUpArgs& args);

}  // namespace millrace::kernels
