// LFM2's gated short convolution on the device, for a ragged mix of prefill chunks and decode
// tokens (kernels/short_conv.h): out[t] = C[t] * sum over j of taps[:, j] * s[t - (L - 1) + j],
// with s = B * x rounded to bf16, which is what the state holds. So s is the same number whether it
// comes from this step or from the state, and chunking changes no bit. The sum is f32: the product
// of the oldest tap rounded, then fused multiply-adds; out is rounded once.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/short_conv.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// As kernels::ConvSave and kernels::ConvSegment, as they lie in device memory.
struct ConvSave {
  std::int32_t length = 0;
  std::int32_t slot = -1;
};
struct ConvChunk {
  std::int32_t row_begin = 0;
  std::int32_t length = 0;  // at least 1
  std::int32_t slot = -1;   // which state it continues; distinct, or -1: padding, rows become zeros
  ConvSave saves[kConvSaves];
};

// All pointers are device memory, aligned to 16 bytes.
struct ShortConvArgs {
  MatrixView<const BFloat16> bcx;  // [T, 3D]: columns B, C, x in that order
  MatrixView<const float> taps;    // [D, L] contiguous, L in [2, kMaxConvTaps]
  const ConvChunk* chunks = nullptr;
  const std::int32_t* sequences = nullptr;  // [T]: chunk of each row; -1: padding, zeros
  TensorView<BFloat16, 3> state;            // [slots, L - 1, D]: the last s columns, oldest first
  MatrixView<BFloat16> out;                 // [T, D], not overlapping bcx
};

// Reads the state as the columns before a chunk and leaves the chunk's last L - 1 columns in it,
// and its saves in theirs. D is a multiple of 8.
void short_conv(StreamRef stream, const ShortConvArgs& args);

// The state that a slot starts with: another slot's, which no move of the call changes, or zeros.
struct ConvMove {
  std::int32_t slot = 0;
  std::int32_t from = -1;  // -1: zeros
};

// Makes these moves, of distinct slots, in all layers at once.
struct MoveConvStateArgs {
  BFloat16* state = nullptr;  // layer 0
  std::int64_t layers = 0;
  std::int64_t layer_stride = 0;    // elements from layer to layer
  std::int64_t slot_elements = 0;   // (L - 1) * D, a multiple of 8
  const ConvMove* moves = nullptr;  // [count], device
  std::int64_t count = 0;
};
void move_conv_state(StreamRef stream, const MoveConvStateArgs& args);

}  // namespace millrace::kernels::cuda
