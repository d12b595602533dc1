// The LFM2-MoE router: sigmoid scores; the K experts with the greatest score + bias are chosen,
// ties to the lowest index; their weights are the scores without the bias.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

inline constexpr std::int64_t kMaxExperts = 1024;
inline constexpr std::int64_t kMaxExpertsPerToken = 64;

struct RouterArgs {
  MatrixView<const float> logits;  // [T, E], E at most kMaxExperts
  std::span<const float> bias;     // [E], or empty for none
  bool normalize = true;           // weights /= sum + 1e-6, the sum in ascending expert order
  float scaling_factor = 1.0F;     // applied last
  MatrixView<std::int32_t> ids;    // [T, K], ascending: the canonical order of combine
  MatrixView<float> weights;       // [T, K], beside ids
};

// K is ids.shape[1], at most E and kMaxExpertsPerToken. A NaN score ranks below all numbers, so K
// distinct experts come out whatever the logits.
using RouterOp = void(const Context& context, const RouterArgs& args);

void check_router(const RouterArgs& args);

}  // namespace millrace::kernels
