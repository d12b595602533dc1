// Keys and values of one sequence and KV head on their way from the pages to shared memory.
#pragma once

#include "kernels/cuda/attention_rows.cuh"

namespace millrace::kernels::cuda {

inline constexpr int kRangeTiles = kAttentionRange / kAttentionTile;
// Positions that lie in one block whatever its size: a lane of a warp looks after each such group
// of a range.
inline constexpr int kPageGroup = 16;
static_assert(kAttentionRange == 32 * kPageGroup);

struct AttentionSource {
  const unsigned char* k;
  const unsigned char* v;
  const std::int32_t* block_tables;
  int max_blocks;
  int block_size;
  int kv_heads;
};

// Tiles [first, end) of the keys before position `keys`, for a block of kThreads threads that all
// call the members alike. A stage of shared memory holds a tile's keys and then its values.
template <class F, int kThreads>
class KvStream {
 public:
  static constexpr int kStageBytes = 2 * F::kTileBytes;

  __device__ __forceinline__ KvStream(const AttentionSource& source, int sequence, int g, int keys,
                                      int first, int end)
      : source_(source),
        table_(source.block_tables + static_cast<std::int64_t>(sequence) * source.max_blocks),
        g_(g),
        keys_(keys),
        end_(end),
        next_rows_(lookup(first / kRangeTiles)) {}

  // Starts the copies of tile `tile` into `stage`, as one group of cp.async; none past the end.
  // Tiles come in ascending order without gaps, the first one of a range.
  __device__ __forceinline__ void start(int tile, unsigned char* stage) {
    if (tile < end_) {
      if (tile % kRangeTiles == 0) {
        // The lookup of the next range has the time of this one.
        rows_ = next_rows_;
        next_rows_ = lookup(tile / kRangeTiles + 1);
      }
      copy(tile, stage);
    }
    cp_async_commit();
  }

 private:
  // The row of the pages where this lane's group of a range begins.
  __device__ __forceinline__ std::uint32_t lookup(int range) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int position = range * kAttentionRange + lane * kPageGroup;
    if (position >= keys_) return 0;
    const int block = table_[position / source_.block_size];
    return static_cast<std::uint32_t>((block * source_.kv_heads + g_) * source_.block_size +
                                      position % source_.block_size);
  }

  __device__ __forceinline__ void copy(int tile, unsigned char* stage) const {
    // A pass copies 16 bytes for each thread: some whole rows.
    constexpr int kPassRows = kThreads / F::kChunks;
    static_assert(kAttentionTile % kPassRows == 0 &&
                  (kPageGroup % kPassRows == 0 || kPassRows % kPageGroup == 0));
    const int my_row = static_cast<int>(threadIdx.x / F::kChunks);
    const int chunk = static_cast<int>(threadIdx.x % F::kChunks);
    const int group = tile % kRangeTiles * (kAttentionTile / kPageGroup) + my_row / kPageGroup;
    const int left = keys_ - tile * kAttentionTile - my_row;
    const int my_offset = F::offset(my_row, chunk);
    // Addresses of all passes at once would not leave registers for the rest.
    [[maybe_unused]] constexpr int kCopyUnroll = F::kHeadDim == 128 ? 2 : 4;
#pragma unroll(kCopyUnroll)
    for (int row = 0; row < kAttentionTile; row += kPassRows) {
      const std::uint32_t page_row =
          __shfl_sync(kAllLanes, rows_, group + row / kPageGroup) + (row + my_row) % kPageGroup;
      const std::size_t from = static_cast<std::size_t>(page_row) * F::kRowBytes + chunk * 16;
      // offset(row + my_row, chunk): the rows have no bit in common.
      unsigned char* const to = stage + (my_offset ^ (F::swizzle(row) * 16)) + row * F::kRowBytes;
      // Rows past the last key become zeros: what lies there may be anything, and 0 * NaN is NaN.
      cp_async_16(to, source_.k + from, row < left);
      cp_async_16(to + F::kTileBytes, source_.v + from, row < left);
    }
  }

  const AttentionSource& source_;
  const std::int32_t* table_;
  int g_;
  int keys_;
  int end_;
  std::uint32_t rows_ = 0;
  std::uint32_t next_rows_;
};

}  // namespace millrace::kernels::cuda
