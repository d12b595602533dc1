// The GEMM kernel for every tensor core since compute capability 8.0: mma.sync over tiles that all
// threads of the block copy to shared memory with cp.async, several steps ahead.
#pragma once

#include "kernels/cuda/gemm_epilogue.cuh"

namespace millrace::kernels::cuda {

// Warps stand four high (16 rows of each record, or a chunk of a narrow tile) and WarpColumns wide.
template <class T_>
struct MmaConfig {
  using T = T_;
  static constexpr int WarpColumns = T::Rows <= 64 ? 1 : 2;
  static constexpr int Threads = 128 * WarpColumns;
  static constexpr int TokenTiles = T::Tokens / 8 / WarpColumns;  // 8-token tiles of one warp
  // About 48 KiB of weights in flight a multiprocessor: three blocks of small tiles hold it with
  // three steps each, one block of wide tiles with three of both records. Rounded up.
  static constexpr int BlocksPerSm = T::XRows <= 32 ? 3 : (T::XRows <= 64 ? 2 : 1);
  static constexpr int SmemBudget = 160 * 1024 / BlocksPerSm - 10 * 1024;
  static constexpr int FitStages = SmemBudget / T::StepBytes;
  static constexpr int Stages = FitStages < 3 ? 3 : (FitStages > 6 ? 6 : FitStages);
  static constexpr int SmemBytes = Stages * T::StepBytes;
};

template <class C>
struct MmaShared {
  TileTable table;
  alignas(16) float stage[C::Threads / 32][kStageFloats];
  alignas(16) float merge[C::T::Narrow ? C::T::XRows * 16 : 1];
  int last;
};

// Accumulators of one warp: [records][tokens / 8][4].
template <class C>
using MmaSums = float[C::T::Records][C::TokenTiles][4];

// Begins the copies of one step: weights as they lie, x swizzled. What does not exist becomes zero.
template <class C>
__device__ __forceinline__ void copy_step(const GemmParams& p, const GemmUnit& unit,
                                          const unsigned char* weights,
                                          const ActivationLoader<typename C::T, C::Threads>& x,
                                          int record, unsigned char* x_to, unsigned char* w_to) {
  using T = typename C::T;
  constexpr int kRecord = record_bytes(T::Format);
  constexpr int kPiece = piece_bytes(T::Format);
  const int records = static_cast<int>(gemm_records(T::Format, p.k));
  const int tiles = static_cast<int>(gemm_tiles(p.n)) - unit.row_tile * T::Records;
  for (int at = static_cast<int>(threadIdx.x) * 16; at < T::WeightBytes; at += C::Threads * 16) {
    // Which record of those a step reads, and the byte in what is taken of it.
    const int part = T::Narrow ? at / kPiece : at / kRecord;
    const int offset = at - part * (T::Narrow ? kPiece : kRecord);
    const int source = T::Narrow ? record + part * T::PerChunk : part * records + record;
    const bool valid = T::Narrow ? source < records : part < tiles;
    const unsigned char* from =
        weights + (valid ? static_cast<std::int64_t>(source) * kRecord + offset : 0);
    cp_async_16(w_to + at, from, valid);
  }
  x.load(p, x_to, record);
}

// part += the step's products, for this warp.
template <class C>
__device__ __forceinline__ void multiply_step(MmaSums<C>& part, const unsigned char* x,
                                              const unsigned char* w) {
  using T = typename C::T;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int first_row = T::Narrow ? warp * T::Tokens : warp / 4 * C::TokenTiles * 8;
#pragma unroll
  for (int half = 0; half < record_cols(T::Format) / 64; ++half) {
    WeightFragments f[T::Records];
#pragma unroll
    for (int i = 0; i < T::Records; ++i) {
      const unsigned char* piece = w + (i * 4 + warp % 4) * piece_bytes(T::Format);
      WeightScales scales{};
      if constexpr (T::Format == WeightFormat::kFp8E4M3) scales = load_scales(piece);
      load_fragments<T::Format>(f[i], piece, half, scales);
    }
    const unsigned char* columns = x + half * T::XRows * 128;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // two steps of 16 columns
#pragma unroll
      for (int j = 0; j < C::TokenTiles; ++j) {
        std::uint32_t b[4];
        ldmatrix_x4(b, columns + swizzled(first_row + 8 * j + lane % 8, 4 * pair + lane / 8));
        const std::uint32_t b0[2] = {b[0], b[1]};
        const std::uint32_t b1[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < T::Records; ++i) {
          mma_m16n8k16_bf16(part[i][j], f[i].a[2 * pair], b0);
          mma_m16n8k16_bf16(part[i][j], f[i].a[2 * pair + 1], b1);
        }
      }
    }
  }
}

// A round is complete: `part` joins `sum` and begins anew.
template <class C>
__device__ __forceinline__ void end_round(const GemmParams& p, MmaShared<C>& shared, int round,
                                          bool first, MmaSums<C>& part, MmaSums<C>& sum) {
  using T = typename C::T;
  if constexpr (T::Narrow) {
    const int chunks = min(T::Span, p.chunks - round * T::Span);
    merge_round(sum[0][0], part[0], shared.merge, chunks, first, [] { __syncthreads(); });
  }
#pragma unroll
  for (int i = 0; i < T::Records; ++i) {
#pragma unroll
    for (int j = 0; j < C::TokenTiles; ++j) {
      if constexpr (!T::Narrow) add_to(sum[i][j], part[i][j], first);
#pragma unroll
      for (int v = 0; v < 4; ++v) part[i][j][v] = 0;
    }
  }
}

// Sums the unit's chunks into `sum`; of a narrow tile into sum[0][0], in warps below Tokens / 8.
template <class C>
__device__ void multiply_unit(const GemmParams& p, const GemmUnit& unit, unsigned char* smem,
                              MmaShared<C>& shared, MmaSums<C>& sum) {
  using T = typename C::T;
  unsigned char* const x_ring = smem;
  unsigned char* const w_ring = smem + C::Stages * T::XBytes;
  const unsigned char* weights = unit_weights<T>(p, unit);
  ActivationLoader<T, C::Threads> x;
  x.start(p, unit, static_cast<int>(threadIdx.x));

  const GemmSteps<T> steps(p, unit);
  const auto copy = [&](int step) {
    const int slot = (step - steps.begin) % C::Stages;
    if (step < steps.end) {
      copy_step<C>(p, unit, weights, x, steps.record(step), x_ring + slot * T::XBytes,
                   w_ring + slot * T::WeightBytes);
    }
    cp_async_commit();  // also without copies: the count of groups stays in step
  };
  // The ring may still be read for the unit before.
  __syncthreads();
  for (int i = 0; i < C::Stages - 1; ++i) copy(steps.begin + i);

  MmaSums<C> part = {};
  for (int step = steps.begin; step < steps.end; ++step) {
    cp_async_wait<C::Stages - 2>();
    __syncthreads();  // the step is there for all, and all are done with the one before it
    copy(step + C::Stages - 1);
    const int slot = (step - steps.begin) % C::Stages;
    multiply_step<C>(part, x_ring + slot * T::XBytes, w_ring + slot * T::WeightBytes);
    if ((step + 1) % T::PerChunk != 0 && step + 1 != steps.end) continue;
    end_round<C>(p, shared, step / T::PerChunk, step - steps.begin < T::PerChunk, part, sum);
  }
}

// True in all threads if `sum` is the whole dot product: the block was the last of its tile.
template <class C>
__device__ __forceinline__ bool give_partial(const GemmParams& p, const GemmUnit& unit,
                                             MmaShared<C>& shared, MmaSums<C>& sum) {
  using T = typename C::T;
  const int warp = static_cast<int>(threadIdx.x / 32);
  int at[T::Records];  // this warp's part of a partial sum
#pragma unroll
  for (int i = 0; i < T::Records; ++i) {
    at[i] = ((i * 4 + warp % 4) * (T::Tokens / 8) + warp / 4 * C::TokenTiles) * 128;
  }
  return finish_split(p, unit, sum, T::Tokens * T::Rows, at, shared.last, [] { __syncthreads(); });
}

template <class C>
__global__ void __launch_bounds__(C::Threads, C::BlocksPerSm)
    gemm_mma_kernel(const __grid_constant__ GemmParams p) {
  await_previous_kernel();
  using T = typename C::T;
  MILLRACE_DYNAMIC_SMEM(smem);
  __shared__ MmaShared<C> shared;
  const int warp = static_cast<int>(threadIdx.x / 32);
  fill_tile_table<T::Tokens>(shared.table, p);
  const int units = unit_count(shared.table, p);
  for (int index = static_cast<int>(blockIdx.x); index < units;
       index += static_cast<int>(gridDim.x)) {
    const GemmUnit unit = decode_unit<T::Tokens>(shared.table, p, index);
    MmaSums<C> sum = {};
    multiply_unit<C>(p, unit, smem, shared, sum);
    if constexpr (T::Narrow) {
      const float(&mine)[1][4] = reinterpret_cast<const float(&)[1][4]>(sum[0][0]);
      if (warp < T::Tokens / 8) {
        store_block(p, unit, mine, unit.row_tile * T::Rows, 8 * warp, shared.stage[warp]);
      }
    } else {
      if (p.split && !give_partial<C>(p, unit, shared, sum)) continue;
#pragma unroll
      for (int i = 0; i < T::Records; ++i) {
        store_block(p, unit, sum[i], unit.row_tile * T::Rows + i * kGemmTileRows + warp % 4 * 16,
                    warp / 4 * C::TokenTiles * 8, shared.stage[warp]);
      }
    }
  }
}

}  // namespace millrace::kernels::cuda
