// The shapes of one block's work, and how its columns are walked. Shared by both paths.
#pragma once

#include "kernels/cuda/gemm_params.cuh"

namespace millrace::kernels::cuda {

// A tile of Rows weight rows and Tokens tokens.
//   Rows 64 or 128: one step is a record of each 64 rows; a warp takes 16 rows of them.
//   Rows 16 ("narrow"): one step is four pieces of the same 16 rows, from four chunks that follow
//     each other; warp c takes the piece of chunk c. In shared memory the pieces lie as a record
//     does. x has Tokens rows for each of the four chunks, one below the other.
template <WeightFormat Format_, int Rows_, int Tokens_>
struct GemmTile {
  static constexpr WeightFormat Format = Format_;
  static constexpr int Rows = Rows_;
  static constexpr int Tokens = Tokens_;
  static constexpr bool Narrow = Rows == 16;
  static constexpr int Span = Narrow ? 4 : 1;             // chunks walked at once
  static constexpr int Records = Narrow ? 1 : Rows / 64;  // of weights in one step
  static constexpr int XRows = Tokens * Span;
  static constexpr int WeightBytes = Records * record_bytes(Format);
  static constexpr int XBytes = XRows * record_cols(Format) * 2;
  static constexpr int StepBytes = WeightBytes + XBytes;
  static constexpr int PerChunk = kGemmChunk / record_cols(Format);  // steps
};

// A unit's steps [begin, end). PerChunk steps are a round: one chunk, or four of a narrow tile.
// Only the last round may be shorter.
template <class T>
struct GemmSteps {
  int begin;
  int end;

  __device__ GemmSteps(const GemmParams& p, const GemmUnit& unit) {
    const int records = static_cast<int>(gemm_records(T::Format, p.k));
    if constexpr (T::Narrow) {
      const int rounds = (p.chunks + T::Span - 1) / T::Span;
      begin = 0;
      end = (rounds - 1) * T::PerChunk +
            min(T::PerChunk, records - (rounds - 1) * T::Span * T::PerChunk);
    } else {
      begin = unit.chunk_begin * T::PerChunk;
      end = min(unit.chunk_end * T::PerChunk, records);
    }
  }

  // The record that a step reads; a narrow tile reads this one and those T::PerChunk, 2 *
  // T::PerChunk and 3 * T::PerChunk further on, as far as they exist.
  static __device__ __forceinline__ int record(int step) {
    return T::Narrow ? step / T::PerChunk * (T::Span * T::PerChunk) + step % T::PerChunk : step;
  }
};

// Where the weights of a unit begin: a record, or a narrow tile's piece of one.
template <class T>
__device__ const unsigned char* unit_weights(const GemmParams& p, const GemmUnit& unit) {
  const std::int64_t tile_bytes = gemm_records(T::Format, p.k) * record_bytes(T::Format);
  const unsigned char* expert = p.w + unit.expert * p.expert_bytes;
  if constexpr (T::Narrow) {
    return expert + unit.row_tile / 4 * tile_bytes + unit.row_tile % 4 * piece_bytes(T::Format);
  } else {
    return expert + unit.row_tile * T::Records * tile_bytes;
  }
}

}  // namespace millrace::kernels::cuda
