// Causal grouped-query attention over paged keys and values on the device, for a mixed batch of
// prefill chunks and decode tokens. bf16 in and out, f32 scores, softmax and sums.
//
// One recipe for all (query, prefix), so that its bits never depend on batch mates, chunking, block
// numbers, the bucket or how the work is cut (contract C1):
//   - the prefix is cut at absolute positions into ranges of kAttentionRange, a range into tiles of
//     kAttentionTile keys;
//   - within a range, online softmax over its tiles from a fresh state (Milakov and Gimelshein
//   2018;
//     FlashAttention, Dao et al. 2022): scores and weighted values by one tensor-core instruction
//     (mma.m16n8k16) in one order, a row's maximum, rescale, add;
//   - ranges are folded together in ascending order by one formula (FlashDecoding's, applied
//   always),
//     in one block or, through the workspace, by the last of several.
// An instruction's rows are (token, query head) pairs of one sequence and one KV head. They do not
// influence each other; keys a row must not see weigh exactly 0, and those past the last token of a
// tile are never read.
//
// The work of a step is planned once on the device (attention_plan) and used by every attention
// layer of the step (attention). Nothing here allocates or synchronises; all of it can be captured,
// and a graph captured for Tb rows serves any tokens in them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

inline constexpr std::int32_t kAttentionTile = 64;
inline constexpr std::int32_t kAttentionRange = 512;

// head_dim is 32, 64 or 128; H / G is 1, 2, 4 or 8. Others are refused by CHECK;
// attention_supports() asks first.
struct AttentionShape {
  std::int32_t heads = 0;     // H
  std::int32_t kv_heads = 0;  // G
  std::int32_t head_dim = 0;
};
bool attention_supports(const AttentionShape& shape);

// Device memory that a plan and the layers that follow it share. One plan at a time, all on one
// stream; contents need no initialisation and are of no use to anyone else.
struct AttentionWorkspace {
  std::byte* data = nullptr;  // attention_workspace_bytes, aligned to 256
  AttentionShape shape;
  std::int32_t max_rows = 0;  // the largest Tb
  // How much of decode may be cut over blocks, in units of (token, range): each takes
  // H * (head_dim + 4) * 4 bytes. Sequences that find none left are read by one warp for each KV
  // head, from end to end: slower, never different. 4096 units are 2 million positions of decoding
  // sequences, 36 MB for H = 32 and head_dim 64.
  std::int32_t split_units = 4096;
};
std::size_t attention_workspace_bytes(const AttentionWorkspace& workspace);

enum class AttentionBatch : std::uint8_t {
  kMixed,   // chunks of consecutive positions are found and computed in tiles
  kDecode,  // hardly any chunks: only the decode kernel is launched, which computes chunks too
};

// The tokens of a step, device pointers; read when the plan runs. sequences[t] is a row of the
// block table, or negative for a padded row; positions[t] is the token's 0-based position. Rows of
// one sequence with consecutive positions should be adjacent: they are computed together.
struct AttentionTokens {
  std::int32_t rows = 0;                    // Tb <= max_rows
  const std::int32_t* sequences = nullptr;  // [Tb]
  const std::int32_t* positions = nullptr;  // [Tb]
  AttentionBatch batch = AttentionBatch::kMixed;
};

// Writes the work list of these tokens into the workspace.
void attention_plan(StreamRef stream, const AttentionWorkspace& workspace,
                    const AttentionTokens& tokens);

struct AttentionArgs {
  TensorView<const BFloat16, 3> q;  // [Tb, H, head_dim], after norm and rotation, 8-byte aligned
  // Positions 0..positions[t] of each sequence are written before, those of the step included.
  // bf16 pages: q and the weights enter as bf16. fp8 pages: as f16, which every e4m3 value is.
  // Values must be finite: an infinite or NaN value row also spoils the rows of its own chunk that
  // come before it (never another sequence).
  KvPages pages;
  // [slots, max_blocks]: block ids of a sequence in the order of positions; entries past its last
  // position are not read.
  const std::int32_t* block_tables = nullptr;
  std::int32_t max_blocks = 0;
  float scale = 0;              // of the scores, positive; 1 / sqrt(head_dim) for LFM2
  TensorView<BFloat16, 3> out;  // [Tb, H, head_dim], 8-byte aligned, not overlapping q; padded
                                // rows become zeros
};

// Computes what the last attention_plan() on this workspace found; `rows` and `batch` are those of
// the plan, its device arrays are not read again.
void attention(StreamRef stream, const AttentionWorkspace& workspace, const AttentionTokens& tokens,
               const AttentionArgs& args);

}  // namespace millrace::kernels::cuda
