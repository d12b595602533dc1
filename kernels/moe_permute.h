// Groups (token, k) pairs by expert: a stable counting sort.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// An id that belongs to no group: padding of a fixed-size exchange.
inline constexpr std::int32_t kNoExpert = -1;

struct MoePermuteArgs {
  MatrixView<const std::int32_t> ids;  // [T, K], each in [0, E) or kNoExpert
  std::span<std::int64_t> offsets;     // [E + 1]: rows of expert e are [offsets[e], offsets[e + 1])
  MatrixView<std::int32_t> rows;       // [T, K]: grouped row of the pair, -1 for kNoExpert
  std::span<std::int32_t> tokens;  // [>= T * K]: token of each grouped row, the first offsets[E]
};

// Inside an expert the rows are ordered by token index, then k. E is offsets.size() - 1.
using MoePermuteOp = void(const Context& context, const MoePermuteArgs& args);

void check_moe_permute(const MoePermuteArgs& args);

}  // namespace millrace::kernels
