// Groups (token, k) pairs by the expert slot of this lane that computes them: a stable counting
// sort on the device (kernels/moe_permute.h), in one launch.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// All pointers are device memory.
struct MoePermuteArgs {
  // [T, K], 16-byte aligned: expert ids; kNoExpert (any negative number) in padding. Rows may be
  // strided, as in the records of kernels/cuda/moe_exchange.h.
  MatrixView<const std::int32_t> ids;
  // [E]: weight slot on this lane of each expert, or negative when the expert lives elsewhere.
  // Null: slot = expert.
  const std::int32_t* slot_of_expert = nullptr;
  std::int32_t experts = 0;         // E
  std::int32_t slots = 0;           // S
  std::int32_t* offsets = nullptr;  // [S + 1]: rows of slot s are [offsets[s], offsets[s + 1])
  MatrixView<std::int32_t> rows;    // [T, K] contiguous: grouped row of the pair, -1 for none
  // [capacity]: token of each grouped row. Only the first offsets[S] are written.
  std::int32_t* tokens = nullptr;
};

// Rows of a slot are ordered by token, then k. The order depends on ids alone. T * K < 2^31; ids at
// or above E count as none. Every slot's block reads all ids twice: meant for up to a few hundred
// thousand pairs.
void moe_permute(StreamRef stream, const MoePermuteArgs& args);

}  // namespace millrace::kernels::cuda
