// What packed_gemm.cc, packed_panels.cc and packed_grouped_gemm.cc share: quantised rows, and the
// tiles and panels of one weight over them. Included by these only.
#pragma once

#include "kernels/packed_gemm.h"

namespace millrace::kernels {

// Activations of one token block stay in an L2 of 1 MiB beside the weights that stream through it.
inline constexpr std::int64_t kTokenBlockBytes = std::int64_t{3} << 18;

// Some quantised rows against the rows of one weight, or of two (gate_up).
struct PackedJob {
  const QuantizedBlock* x = nullptr;
  std::int64_t blocks = 0;               // of a row: K / 32
  const std::int32_t* x_rows = nullptr;  // null: token t is row t of x
  std::int64_t tokens = 0;
  WeightView w;
  WeightView up;       // with data: y = silu(w x) * (up x), same type and shape as w
  float* y = nullptr;  // [tokens, w.rows]
  std::int64_t y_stride = 0;
  bool add = false;  // not with up

  const QuantizedBlock* row(std::int64_t t) const {
    return x + (x_rows == nullptr ? t : std::int64_t{x_rows[t]}) * blocks;
  }
};

// Tiles of kPackedRows rows [begin, end) of the weight for all tokens.
void run_row_tiles(const PackedKernels& kernels, const PackedJob& job, std::int64_t begin,
                   std::int64_t end);

// The same for as many of the first tokens as panels pay for: how many it did.
std::int64_t run_row_panels(const PackedKernels& kernels, const PackedJob& job, std::int64_t begin,
                            std::int64_t end);
// How many tokens of `tokens` those are. From shapes and the machine's kernels alone; whatever it
// says, the bits are the same.
std::int64_t panel_tokens(const PackedKernels& kernels, DType packed, std::int64_t blocks,
                          std::int64_t tokens);

// The least number of row tiles worth a thread.
std::int64_t tile_grain(std::int64_t tokens, std::int64_t k);

// Where quantised rows go, and how many of `blocks` blocks fit.
struct QuantizedSpace {
  QuantizedBlock* rows = nullptr;
  std::int64_t capacity = 0;
};
QuantizedSpace space_for(const Context& context, std::int64_t blocks);

// Row i of `out` from row x_rows[i] of x, or row i where x_rows is null.
void quantize_rows(const PackedKernels& kernels, const Context& context, MatrixView<const float> x,
                   const std::int32_t* x_rows, std::int64_t count, QuantizeMode mode,
                   QuantizedBlock* out);

}  // namespace millrace::kernels
