// Per-head RMSNorm of q and k, then rotary position embedding (Su et al. 2021) in the half-rotation
// (GPT-NeoX) form that LFM2 uses: pair (i, i + head_dim/2) turns by position *
// theta^(-2i/head_dim).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// theta^(-2i/head_dim) for i in [0, head_dim/2), rounded as Transformers does: 1 / pow in f32.
std::vector<float> rope_inverse_frequencies(float theta, std::int64_t head_dim);

// Cosines and sines of a step's positions; computed once per step and used by all layers.
// cos, sin [T, head_dim/2]: of the f32 product position * inverse_frequency.
using RopeAnglesOp = void(const Context& context, std::span<const std::int32_t> positions,
                          std::span<const float> inverse_frequencies, MatrixView<float> cos,
                          MatrixView<float> sin);

struct QkNormRopeArgs {
  TensorView<float, 3> q;           // [T, H, head_dim], in place
  TensorView<float, 3> k;           // [T, G, head_dim], in place
  std::span<const float> q_weight;  // [head_dim], shared by all heads
  std::span<const float> k_weight;  // [head_dim]
  float eps = 0;
  MatrixView<const float> cos;  // [T, head_dim/2]
  MatrixView<const float> sin;  // [T, head_dim/2]
};

// head_dim even. q and k may be parts of one fused qkv row; v is not touched.
// out[i] = n[i] cos - n[i + half] sin; out[i + half] = n[i + half] cos + n[i] sin, where the second
// product is rounded before it joins the first by fused multiply-add.
using QkNormRopeOp = void(const Context& context, const QkNormRopeArgs& args);

void check_rope_angles(std::span<const std::int32_t> positions,
                       std::span<const float> inverse_frequencies, MatrixView<float> cos,
                       MatrixView<float> sin);
void check_qk_norm_rope(const QkNormRopeArgs& args);

}  // namespace millrace::kernels
