// From accumulators to y: partial sums of split tiles, and the four epilogues.
//
// A warp holds blocks of 16 weight rows by TileTokens tokens as sum[j][4]: with g = lane / 4 and
// q = lane % 4, rows g (sum[j][0], [1]) and g + 8 ([2], [3]) of tokens 8j + 2q and 8j + 2q + 1.
#pragma once

#include "kernels/cuda/gemm_fragment.cuh"
#include "kernels/cuda/math.cuh"

namespace millrace::kernels::cuda {

// A warp's 8 tokens x 16 values on their way from columns of the accumulators to rows of y. The
// stride puts the 32 values that a warp writes at once into 32 banks, and keeps rows 16-byte
// aligned.
inline constexpr int kStageStride = 20;
inline constexpr int kStageFloats = 8 * kStageStride;

// The order of all sums over chunks: the first is taken as it is, the others are added to it.
__device__ __forceinline__ void add_to(float (&sum)[4], const float (&part)[4], bool first) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = first ? part[i] : __fadd_rn(sum[i], part[i]);
}

// Partial sums of one unit lie in accumulator order, [blocks of 16 rows][tiles of 8 tokens][32
// lanes] of four values: every access is 512 consecutive bytes a warp.
template <int Tiles>
__device__ __forceinline__ void write_partial(float* block, const float (&part)[Tiles][4]) {
  float4* out = reinterpret_cast<float4*>(block) + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Tiles; ++j) {
    out[j * 32] = make_float4(part[j][0], part[j][1], part[j][2], part[j][3]);
  }
}
template <int Tiles>
__device__ __forceinline__ void read_partial(float (&part)[Tiles][4], const float* block) {
  const float4* in = reinterpret_cast<const float4*>(block) + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Tiles; ++j) {
    const float4 v = in[j * 32];
    part[j][0] = v.x;
    part[j][1] = v.y;
    part[j][2] = v.z;
    part[j][3] = v.w;
  }
}

// Gives the unit's partial sum, `sum`, to the workspace, from all threads that hold a part of it.
// True in all of them if this block is the last of the tile: then `sum` is the whole dot product. A
// warp's block i of 16 rows lies at[i] floats into the `tile_floats` of a partial sum. `last` is in
// shared memory; sync() is a barrier of those threads, of which thread 0 of the block is one.
template <int Blocks, int Tiles, class Sync>
__device__ bool finish_split(const GemmParams& p, const GemmUnit& unit,
                             float (&sum)[Blocks][Tiles][4], int tile_floats,
                             const int (&at)[Blocks], int& last, Sync sync) {
  float* tile = p.partials + static_cast<std::int64_t>(unit.tile) * p.chunks * tile_floats;
  float* mine = tile + static_cast<std::int64_t>(unit.chunk_begin) * tile_floats;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) write_partial(mine + at[i], sum[i]);
  sync();
  if (threadIdx.x == 0) {
    last = atomic_ticket(p.tickets + unit.tile) + 1 == static_cast<unsigned>(p.chunks) ? 1 : 0;
    if (last != 0) p.tickets[unit.tile] = 0;
  }
  sync();
  if (last == 0) return false;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const float* from = tile + static_cast<std::int64_t>(chunk) * tile_floats;
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      float part[Tiles][4];
      read_partial(part, from + at[i]);
#pragma unroll
      for (int j = 0; j < Tiles; ++j) add_to(sum[i][j], part[j], chunk == 0);
    }
  }
  return true;
}

// The four chunks of a narrow tile's round, from the four warps that hold a partial sum each: warp
// j adds those of tokens [8j, 8j + 8) to `sum`, in ascending order. `merge` is shared memory of 4 *
// Tiles * 128 floats; sync() a barrier of the four warps.
template <int Tiles, class Sync>
__device__ void merge_round(float (&sum)[4], const float (&part)[Tiles][4], float* merge,
                            int chunks, bool first, Sync sync) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  write_partial(merge + warp * Tiles * 128, part);
  sync();
  if (warp < Tiles) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      float other[1][4];
      read_partial(other, merge + (chunk * Tiles + warp) * 128);
      add_to(sum, other[0], first && chunk == 0);
    }
  }
  sync();
}

// Four values of one token to columns [col, col + 4) of a row of `cols` columns.
__device__ inline void store_4(const GemmParams& p, std::int64_t row, int col, int cols, float4 v) {
  const std::int64_t at = row * p.y_stride + col;
  const float values[4] = {v.x, v.y, v.z, v.w};
  const int count = min(4, cols - col);
  if (p.epilogue == GemmEpilogue::kStoreBf16) {
    auto* y = static_cast<__nv_bfloat16*>(p.y) + at;
    if (p.wide_stores && count == 4) {
      *reinterpret_cast<uint2*>(y) =
          make_uint2(f32x2_to_bf16x2(v.x, v.y), f32x2_to_bf16x2(v.z, v.w));
    } else {
      for (int i = 0; i < count; ++i) y[i] = __float2bfloat16_rn(values[i]);
    }
    return;
  }
  auto* y = static_cast<float*>(p.y) + at;
  const bool add = p.epilogue == GemmEpilogue::kAddF32;
  if (p.wide_stores && count == 4) {
    auto* y4 = reinterpret_cast<float4*>(y);
    if (add) {
      const float4 old = *y4;
      v = make_float4(__fadd_rn(old.x, v.x), __fadd_rn(old.y, v.y), __fadd_rn(old.z, v.z),
                      __fadd_rn(old.w, v.w));
    }
    *y4 = v;
  } else {
    for (int i = 0; i < count; ++i) y[i] = add ? __fadd_rn(y[i], values[i]) : values[i];
  }
}

// Two bf16 of one token; columns come in eights, so both exist or neither.
__device__ inline void store_2(const GemmParams& p, std::int64_t row, int col, float2 v) {
  auto* y = static_cast<__nv_bfloat16*>(p.y) + row * p.y_stride + col;
  if (p.wide_stores) {
    *reinterpret_cast<std::uint32_t*>(y) = f32x2_to_bf16x2(v.x, v.y);
  } else {
    y[0] = __float2bfloat16_rn(v.x);
    y[1] = __float2bfloat16_rn(v.y);
  }
}

// One warp: packed rows [n0, n0 + 16) of the tokens from `token` (in the tile) on. `stage` is the
// warp's own kStageFloats of shared memory.
template <int Tiles>
__device__ void store_block(const GemmParams& p, const GemmUnit& unit, const float (&sum)[Tiles][4],
                            int n0, int token, float* stage) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4;
  const int q = lane % 4;
  const bool swiglu = p.epilogue == GemmEpilogue::kSwiGlu;
  if (n0 >= p.n) return;
#pragma unroll
  for (int j = 0; j < Tiles; ++j) {
    const int t0 = token + 8 * j;
    if (t0 >= unit.row_count) break;
    float* write = stage + 2 * q * kStageStride + g;
    __syncwarp();
    if (swiglu) {
      write[0] = __fmul_rn(silu_f32(sum[j][0]), sum[j][2]);
      write[kStageStride] = __fmul_rn(silu_f32(sum[j][1]), sum[j][3]);
    } else {
      write[0] = sum[j][0];
      write[kStageStride] = sum[j][1];
      write[8] = sum[j][2];
      write[kStageStride + 8] = sum[j][3];
    }
    __syncwarp();
    // Lane: token lane / 4, its quarter of the 16 (or 8) values.
    const float* read = stage + g * kStageStride;
    const std::int64_t row = unit.row_begin + t0 + g;
    if (t0 + g >= unit.row_count) continue;
    if (swiglu) {
      store_2(p, row, n0 / 2 + 2 * q, *reinterpret_cast<const float2*>(read + 2 * q));
    } else if (n0 + 4 * q < p.n) {
      store_4(p, row, n0 + 4 * q, p.n, *reinterpret_cast<const float4*>(read + 4 * q));
    }
  }
}

}  // namespace millrace::kernels::cuda
