// Causal grouped-query attention over paged keys and values, for a mixed batch of prefill chunks
// and decode tokens: every query token stands alone, with its sequence and its position.
//
// Online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022) over tiles of
// kAttentionTile absolute positions starting at 0: scores of a tile, the running maximum, then
// rescale and add. Tiles begin at fixed positions, so the result for (query, prefix) does not
// depend on chunking, batch mates, block size, block numbers or threads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kv_write.h"
#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

inline constexpr std::int64_t kAttentionTile = 32;
inline constexpr std::int64_t kMaxHeadDim = 512;

struct AttentionArgs {
  TensorView<const float, 3> q;             // [T, H, head_dim], after norm and rotation
  KvPages pages;                            // holds positions 0..positions[t] of each sequence
  std::span<const std::int32_t> sequences;  // [T]: index into block_tables
  std::span<const std::int32_t> positions;  // [T]: 0-based position of the token in its sequence
  std::span<const std::uint32_t* const> block_tables;  // [B]: block ids, in the order of positions
  float scale = 0;                                     // of the scores, 1 / sqrt(head_dim) for LFM2
  TensorView<float, 3> out;                            // [T, H, head_dim], not overlapping q
};

// Token t attends to positions 0..positions[t] inclusive, so its own k and v are written before.
// H is a multiple of G; query head h reads kv head h / (H / G). head_dim is a multiple of 16 and at
// most kMaxHeadDim. A block table is read up to entry positions[t] / block_size.
using AttentionOp = void(const Context& context, const AttentionArgs& args);

void check_attention(const AttentionArgs& args);

}  // namespace millrace::kernels
