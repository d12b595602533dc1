// LFM2's gated short convolution, between in_proj and out_proj: with [B, C, x] = in_proj(u) and
// s = B * x, out[t] = C[t] * sum over j of taps[:, j] * s[t - (L - 1) + j]. Depthwise and causal;
// the last tap multiplies the current token; no activation function.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

inline constexpr std::int64_t kMaxConvTaps = 16;

// A copy of a segment's state as it is behind its first rows, for sequences that will go on there.
struct ConvSave {
  std::int64_t length = 0;  // behind how many rows, in [1, the segment's length]
  std::int64_t slot = -1;   // where it is left: no segment's slot, and no other save's; -1: nowhere
};
inline constexpr std::size_t kConvSaves = 2;

// Consecutive rows of one sequence in this step.
struct ConvSegment {
  std::int64_t row_begin = 0;
  std::int64_t length = 0;  // at least 1
  std::int64_t slot = 0;    // which state it continues; slots of one call are distinct
  std::array<ConvSave, kConvSaves> saves{};
};

struct ShortConvArgs {
  MatrixView<const float> bcx;            // [T, 3D]: columns B, C, x in that order
  MatrixView<const float> taps;           // [D, L], L in [2, kMaxConvTaps]
  std::span<const ConvSegment> segments;  // cover each row at most once
  TensorView<float, 3> state;             // [slots, L - 1, D]: the last s columns, oldest first
  MatrixView<float> out;                  // [T, D], not overlapping bcx
};

// Reads the state as the columns before a segment and leaves the segment's last L - 1 columns in
// it, and its saves in theirs. A sequence's first token needs a state of zeros: the caller zeroes
// the slot. Rows outside every segment are not written. Order of the sum: oldest tap first, product
// of the first tap rounded, then fused multiply-adds; so chunking changes no bit.
using ShortConvOp = void(const Context& context, const ShortConvArgs& args);

void check_short_conv(const ShortConvArgs& args);

}  // namespace millrace::kernels
