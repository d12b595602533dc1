// Per-head RMSNorm of q and k, rotary embedding, and the write of keys and values into their pages,
// in one pass over the fused qkv rows (kernels/qk_norm_rope.h, kernels/kv_write.h). All of it is
// f32 between the bf16 input and one rounding at the end.
#pragma once

#include <cstdint>

#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// Cosines and sines of a step's positions, once per step for all layers: of the f32 product
// position
// * inverse_frequency (kernels/qk_norm_rope.h, rope_inverse_frequencies), in double, rounded to
// f32.
struct RopeAnglesArgs {
  const std::int32_t* positions = nullptr;     // [T], device
  const float* inverse_frequencies = nullptr;  // [head_dim / 2], device
  MatrixView<float> cos;                       // [T, head_dim / 2] contiguous, 16-byte aligned
  MatrixView<float> sin;
};
void rope_angles(StreamRef stream, const RopeAnglesArgs& args);

// All pointers are device memory.
struct QkNormRopeArgs {
  // [T, (H + 2 G) head_dim]: q heads, k heads, v heads; rows aligned to 16 bytes. q is replaced by
  // its normed and rotated self; k and v stay as they are.
  MatrixView<BFloat16> qkv;
  std::int32_t heads = 0;           // H; G and head_dim are those of the pages
  const float* q_weight = nullptr;  // [head_dim], 16-byte aligned, shared by all heads
  const float* k_weight = nullptr;
  float eps = 0;
  MatrixView<const float> cos;  // [T, head_dim / 2] contiguous
  MatrixView<const float> sin;
  const std::int64_t* slots = nullptr;  // [T]: block * block_size + offset, or -1 to write nothing
  KvPages pages;
};

// head_dim is 32, 64, 128 or 256. Slots other than -1 are distinct and below num_blocks *
// block_size.
void qk_norm_rope(StreamRef stream, const QkNormRopeArgs& args);

}  // namespace millrace::kernels::cuda
