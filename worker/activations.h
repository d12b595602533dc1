// The buffers of one forward pass, sized once for the largest step and used again by every layer.
#pragma once

#include <cstdint>

#include "config/model_config.h"
#include "kernels/buffer.h"

namespace millrace {

struct Activations {
  // `max_tokens` per lane and step; `expert_rows` the most rows that a lane's experts can receive
  // in one step; `logit_rows` rows of logits are computed at a time.
  Activations(const ModelConfig& model, std::int64_t max_tokens, std::int64_t expert_rows,
              std::int64_t logit_rows);

  // Bytes that the constructor reserves, for the memory plan.
  static std::int64_t bytes(const ModelConfig& model, std::int64_t max_tokens,
                            std::int64_t expert_rows, std::int64_t logit_rows);

  kernels::MatrixBuffer<float> hidden;    // [T, D], the residual stream
  kernels::MatrixBuffer<float> normed;    // [T, D]
  kernels::MatrixBuffer<float> bcx;       // [T, 3D], short convolution
  kernels::MatrixBuffer<float> mixed;     // [T, max(D, H * head_dim)], before an output projection
  kernels::MatrixBuffer<float> qkv;       // [T, (H + 2G) * head_dim]
  kernels::MatrixBuffer<float> cos, sin;  // [T, head_dim / 2], of the step's positions
  kernels::MatrixBuffer<float> gate, up;  // dense: [T, ff]; experts: [R, F]
  kernels::MatrixBuffer<float> router;    // [T, E]
  kernels::MatrixBuffer<std::int32_t> expert_ids;  // [T, K]
  kernels::MatrixBuffer<float> expert_weights;     // [T, K]
  kernels::MatrixBuffer<float> expert_out;         // [R, D]
  kernels::MatrixBuffer<float> selected;           // [logit_rows, D], final norm of the rows wanted
  kernels::MatrixBuffer<float> logits;             // [logit_rows, V]
};

}  // namespace millrace
