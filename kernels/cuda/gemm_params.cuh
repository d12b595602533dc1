// What every GEMM kernel is told, and how a block finds its share of the work.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {

// A dense GEMM is the case of one group: experts 1, offsets null.
struct GemmParams {
  const __nv_bfloat16* x = nullptr;
  std::int64_t x_stride = 0;
  const std::int32_t* x_rows = nullptr;
  const unsigned char* w = nullptr;
  std::int64_t expert_bytes = 0;
  const std::int32_t* offsets = nullptr;
  int experts = 1;
  int tokens = 0;  // T of a dense GEMM
  int n = 0;
  int k = 0;
  int row_tiles = 0;
  int chunks = 0;
  bool split = false;
  GemmEpilogue epilogue = GemmEpilogue::kStoreBf16;
  bool weights_once = false;  // tokens fit into one tile: nobody else will read these weights
  bool wide_stores = false;   // rows of y are aligned to what a lane stores (gemm_epilogue.cuh)
  void* y = nullptr;
  std::int64_t y_stride = 0;
  float* partials = nullptr;
  std::uint32_t* tickets = nullptr;
};

// Token tiles of the experts before each expert, and where its rows begin. In shared memory.
struct TileTable {
  int first_tile[kMaxGroupedExperts + 1];
  int row_begin[kMaxGroupedExperts + 1];
};

// By all threads of the block; ends in a barrier.
template <int TileTokens>
__device__ void fill_tile_table(TileTable& table, const GemmParams& p) {
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    int before = 0;
    for (int base = 0; base < p.experts; base += 32) {
      const int e = base + lane;
      int begin = 0;
      int end = 0;
      if (e < p.experts) {
        begin = p.offsets != nullptr ? p.offsets[e] : 0;
        end = p.offsets != nullptr ? p.offsets[e + 1] : p.tokens;
      }
      const int tiles = (end - begin + TileTokens - 1) / TileTokens;
      int sum = tiles;  // inclusive prefix sum over the warp
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffU, sum, step);
        if (lane >= step) sum += other;
      }
      if (e < p.experts) {
        table.first_tile[e] = before + sum - tiles;
        table.row_begin[e] = begin;
        if (e + 1 == p.experts) {
          table.first_tile[e + 1] = before + sum;
          table.row_begin[e + 1] = end;
        }
      }
      before += __shfl_sync(0xffffffffU, sum, 31);
    }
  }
  __syncthreads();
}

// One piece of work: a tile of outputs, and the chunks of it that this block sums.
struct GemmUnit {
  int tile;  // of all tiles: its ticket
  int expert;
  int row_tile;
  int row_begin;  // first row of the tile (grouped row, or token)
  int row_count;  // rows that exist, 1..TileTokens
  int chunk_begin;
  int chunk_end;
};

__device__ inline int unit_count(const TileTable& table, const GemmParams& p) {
  return table.first_tile[p.experts] * p.row_tiles * (p.split ? p.chunks : 1);
}

// Neighbouring units run at the same time. Chunks of a tile are neighbours; then come the token
// tiles of a band, which share weights; then the row tiles, which share the band's x. A band is
// bounded so that both fit into L2.
inline constexpr int kBandTiles = 16;

template <int TileTokens>
__device__ GemmUnit decode_unit(const TileTable& table, const GemmParams& p, int index) {
  GemmUnit unit;
  unit.chunk_begin = 0;
  unit.chunk_end = p.chunks;
  unit.tile = index;
  if (p.split) {
    unit.tile = index / p.chunks;
    unit.chunk_begin = index - unit.tile * p.chunks;
    unit.chunk_end = unit.chunk_begin + 1;
  }
  // The last expert whose tiles begin at or before this one; experts without rows have none.
  const int token_tile = unit.tile / p.row_tiles;
  int low = 0;
  int high = p.experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.first_tile[middle] <= token_tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  unit.expert = low;
  const int first = table.first_tile[low];
  const int token_tiles = table.first_tile[low + 1] - first;
  const int local = unit.tile - first * p.row_tiles;
  const int band = local / (kBandTiles * p.row_tiles);
  const int in_band = local - band * kBandTiles * p.row_tiles;
  const int width = min(kBandTiles, token_tiles - band * kBandTiles);
  unit.row_tile = in_band / width;
  const int t = band * kBandTiles + in_band - unit.row_tile * width;
  unit.row_begin = table.row_begin[low] + t * TileTokens;
  unit.row_count = min(TileTokens, table.row_begin[low + 1] - unit.row_begin);
  return unit;
}

}  // namespace millrace::kernels::cuda
