// Operands of the tensor cores: weights from packed records to registers, activations from rows in
// global memory to a tile in shared memory. Shared by both paths.
#pragma once

#include "kernels/cuda/gemm_tile.cuh"
#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {

// The A operand of one warp for 64 columns: four steps of 16, as mma_m16n8k16_bf16 takes them.
struct WeightFragments {
  std::uint32_t a[4][4];
};

// A word of packed fp8 to the bf16 pairs of rows g and g + 8; scale_* are pairs of multipliers.
__device__ __forceinline__ void widen_fp8(std::uint32_t word, std::uint32_t scale_low,
                                          std::uint32_t scale_high, std::uint32_t& low,
                                          std::uint32_t& high) {
  const std::uint32_t even = word << 8;
  low = mul_bf16x2((even & 0x80008000U) | ((even >> 4) & 0x07f007f0U), scale_low);
  high = mul_bf16x2((word & 0x80008000U) | ((word >> 4) & 0x07f007f0U), scale_high);
}

// Multipliers of rows g and g + 8 of a piece, each twice in a register. fp8 only.
struct WeightScales {
  std::uint32_t low;
  std::uint32_t high;
};
__device__ __forceinline__ WeightScales load_scales(const unsigned char* piece) {
  const auto* m = reinterpret_cast<const std::uint16_t*>(piece + kPieceValueBytes);
  const int row = static_cast<int>(threadIdx.x % 32) / 4;
  return {m[row] * 0x10001U, m[row + 8] * 0x10001U};
}

// Columns [64 * half, 64 * half + 64) of a piece in shared memory; bf16 pieces have one half.
template <WeightFormat Format>
__device__ __forceinline__ void load_fragments(WeightFragments& f, const unsigned char* piece,
                                               int half, const WeightScales& scales) {
  const auto* lane = reinterpret_cast<const uint4*>(piece) + threadIdx.x % 32;
  if constexpr (Format == WeightFormat::kBf16) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint4 v = lane[step * 32];
      f.a[step][0] = v.x;
      f.a[step][1] = v.y;
      f.a[step][2] = v.z;
      f.a[step][3] = v.w;
    }
  } else {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint4 v = lane[(half * 2 + pair) * 32];
      std::uint32_t(&first)[4] = f.a[2 * pair];
      std::uint32_t(&second)[4] = f.a[2 * pair + 1];
      widen_fp8(v.x, scales.low, scales.high, first[0], first[1]);
      widen_fp8(v.y, scales.low, scales.high, first[2], first[3]);
      widen_fp8(v.z, scales.low, scales.high, second[0], second[1]);
      widen_fp8(v.w, scales.low, scales.high, second[2], second[3]);
    }
  }
}

// x of one step in shared memory: [record_cols / 64][XRows] rows of 64 columns, 128 bytes, with the
// 16-byte column c of row r at c ^ (r % 8): ldmatrix's eight rows lie in different banks, and it is
// the 128-byte swizzle of wgmma's descriptors.
__device__ __forceinline__ int swizzled(int row, int column) {
  return row * 128 + (column ^ (row & 7)) * 16;
}

// A thread's part of filling such tiles: the same rows and the same 16-byte column for a whole
// unit. Rows beyond the group and columns beyond K become zero, so nothing that lies there can
// leak.
template <class T, int Threads>
class ActivationLoader {
 public:
  // `thread` in [0, Threads).
  __device__ void start(const GemmParams& p, const GemmUnit& unit, int thread) {
    thread_ = thread;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int token = T::Narrow ? tile_row(i) % T::Tokens : tile_row(i);
      rows_[i] = -1;
      if (token < unit.row_count) {
        const int r = unit.row_begin + token;
        rows_[i] = p.x_rows != nullptr ? p.x_rows[r] : r;
      }
    }
  }

  // Begins the copy of the columns of `record` (of a narrow tile: and of the three others that
  // GemmSteps names); the caller commits the group.
  __device__ void load(const GemmParams& p, unsigned char* tile, int record) const {
    const int column = thread_ % 8;
#pragma unroll
    for (int part = 0; part < record_cols(T::Format) / 64; ++part) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = tile_row(i);
        if (kEven || row < T::XRows) {
          const int chunk = T::Narrow ? row / T::Tokens : 0;
          const int col =
              record * record_cols(T::Format) + chunk * kGemmChunk + part * 64 + column * 8;
          const bool valid = rows_[i] >= 0 && col < p.k;
          const __nv_bfloat16* from = valid ? p.x + rows_[i] * p.x_stride + col : p.x;
          cp_async_16(tile + part * T::XRows * 128 + swizzled(row, column), from, valid);
        }
      }
    }
  }

 private:
  static_assert(Threads % 8 == 0);
  static constexpr int kPieces = T::XRows * 8;
  static constexpr int kRows = (kPieces + Threads - 1) / Threads;
  static constexpr bool kEven = kPieces % Threads == 0;

  __device__ __forceinline__ int tile_row(int i) const { return (thread_ + i * Threads) / 8; }

  int thread_;
  int rows_[kRows];
};

}  // namespace millrace::kernels::cuda
