// What attention_plan.cu writes into the workspace and attention.cu reads: lists of work items and
// the partial results of ranges that different blocks compute.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {

// Rows (token, query head) of one decode item: half of those of one mma, which one token of any
// supported group does not exceed; the softmax of rows that are not there would cost as much again.
inline constexpr int kDecodeRows = 8;
// A chunk of at most this many rows is decoded: it would leave half of a prefill tile empty, and
// its ranges can be cut over blocks.
inline constexpr int kMaxDecodedRows = 64;
// Padded rows zeroed by one item.
inline constexpr int kZeroTokens = 64;

// Rows of a prefill tile: four warps of 32, or of 16 where head_dim 128 fills the registers.
inline constexpr int prefill_rows(int head_dim) { return head_dim <= 64 ? 128 : 64; }

// `tokens` tokens from row `row` on, at positions `position` and up, for every KV head.
struct alignas(16) AttentionItem {
  std::int32_t row;
  std::int32_t tokens;
  std::int32_t position;
  std::int32_t sequence;  // negative: write zeros
  // Decode: this range of `ranges`, whose partial results begin at `unit` for range 0 and end with
  // the merge by the last to draw from `ticket`. kAllRanges: all of them, by one warp.
  std::int32_t range;
  std::int32_t ranges;
  std::int32_t unit;
  std::int32_t ticket;
};
inline constexpr std::int32_t kAllRanges = -1;

struct AttentionCounts {
  std::int32_t decode;
  std::int32_t prefill;
};

// A row's result for one range: its weighted values, maximum and sum, padded to 16 bytes.
__host__ __device__ constexpr int partial_floats(int head_dim) { return head_dim + 4; }

// Where things lie in a workspace. Plain pointers, passed to kernels by value.
struct AttentionLists {
  AttentionCounts* counts;
  std::int32_t* starts;  // [max_rows + 1]: first rows of the segments, then the row count
  AttentionItem* decode;
  AttentionItem* prefill;
  std::uint32_t* tickets;  // [decode items, G], all zero between launches
  float* partials;         // [split_units, H, partial_floats]: rows over one range
  std::size_t bytes;
};

// Upper bounds for `rows` rows. Every split item takes a unit, every other one a row.
std::int32_t max_decode_items(const AttentionWorkspace& w, std::int32_t rows);
std::int32_t max_prefill_items(const AttentionWorkspace& w, std::int32_t rows);
AttentionLists attention_lists(const AttentionWorkspace& w);
void check_workspace(const AttentionWorkspace& w, const AttentionTokens& tokens);

}  // namespace millrace::kernels::cuda
