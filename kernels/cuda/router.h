// The LFM2-MoE router on the device (kernels/router.h): sigmoid scores; the K experts with the
// greatest score + bias, ties to the lowest index; their weights are the scores without the bias.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

inline constexpr std::int64_t kMaxRouterExperts = 512;
inline constexpr std::int64_t kMaxRouterTopK = 8;

// All pointers are device memory.
struct RouterArgs {
  MatrixView<const float> logits;           // [T, E], E at most kMaxRouterExperts
  const float* bias = nullptr;              // [E], or null for none
  bool normalize = true;                    // weights /= sum + 1e-6, summed in ascending expert id
  float scaling_factor = 1.0F;              // applied last
  const std::int32_t* sequences = nullptr;  // [T]: negative marks padding; null: no row is padding
  MatrixView<std::int32_t> ids;             // [T, K], ascending; kNoExpert in padding
  MatrixView<float> weights;                // [T, K], beside ids; 0 in padding
};

// K is ids.shape[1], at most kMaxRouterTopK and E. A NaN score ranks below all numbers, so K
// distinct experts come out whatever the logits.
void router(StreamRef stream, const RouterArgs& args);

}  // namespace millrace::kernels::cuda
