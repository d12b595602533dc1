// How the weights of linear layers lie in device memory: in the order in which tensor cores take
// them, so that a thread's operand is one 16-byte load and a tile's weights are consecutive bytes.
//
//   packed = [ceil(N / 64) tiles][ceil(K / record_cols) records][4 pieces]
//
// A tile is 64 rows (outputs), a record 64 rows x record_cols columns, a piece 16 of those rows:
//   bf16: 64 columns as [4 steps of 16 columns][32 lanes][16 bytes];
//   fp8: 128 columns as [4 steps of 32 columns][32 lanes][16 bytes], then 16 bf16 multipliers, one
//   a
//     row: fp8 values have a scale for each row and 128 columns.
// A lane's 16 bytes hold what mma.m16n8k16 (and wgmma, a warp) wants of A in that lane (ptx.cuh):
// with g = lane / 4, q = lane % 4 those are rows g and g + 8, columns 2q, 2q + 1, 2q + 8, 2q + 9 of
// each 16. bf16: words a[0..3]. fp8: two steps of two words; a word has the bytes (row g, first
// column), (row g + 8, first), (row g, second), (row g + 8, second), so that two shifts and masks
// leave both rows' pairs in place.
// Rows and columns beyond [N, K] are zero.
//
// fp8 scales are powers of two, 2^e with e in [-100, 7]. The multiplier stored is 2^(e + 120):
// e4m3's bits moved to where bf16 has its exponent and mantissa read as the value times 2^-120,
// subnormals too, so one exact bf16 product gives the weight. A gemm over fp8 weights is therefore
// the bf16 gemm over the values that unpack_weight returns, to the bit.
//
// SwiGLU: gate (w1) and up (w3) rows alternate by eight, so one thread's accumulators hold the gate
// and the up value of the same column: column f of w1 is packed row gate_row(f), of w3 up_row(f).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/types.h"

#if !defined(MILLRACE_HOST_DEVICE)
#if defined(__CUDACC__)
#define MILLRACE_HOST_DEVICE __host__ __device__
#else
#define MILLRACE_HOST_DEVICE
#endif
#endif

namespace millrace::kernels::cuda {

enum class WeightFormat : std::uint8_t { kBf16, kFp8E4M3 };

inline constexpr int kGemmTileRows = 64;
// Columns of one partial sum (contract C1, kernels/cuda/gemm.h); a multiple of every record's.
inline constexpr int kGemmChunk = 512;
inline constexpr int kMultiplierBias = 120;
inline constexpr int kMinScaleExponent = -100;
inline constexpr int kMaxScaleExponent = 7;

MILLRACE_HOST_DEVICE constexpr int record_cols(WeightFormat format) {
  return format == WeightFormat::kBf16 ? 64 : 128;
}
// The 16 x 64 or 16 x 128 values of a piece.
inline constexpr int kPieceValueBytes = 2048;
MILLRACE_HOST_DEVICE constexpr int piece_bytes(WeightFormat format) {
  return format == WeightFormat::kBf16 ? kPieceValueBytes : kPieceValueBytes + 32;
}
MILLRACE_HOST_DEVICE constexpr int record_bytes(WeightFormat format) {
  return 4 * piece_bytes(format);
}
MILLRACE_HOST_DEVICE constexpr std::int64_t gemm_tiles(std::int64_t rows) {
  return (rows + kGemmTileRows - 1) / kGemmTileRows;
}
MILLRACE_HOST_DEVICE constexpr std::int64_t gemm_records(WeightFormat format, std::int64_t cols) {
  return (cols + record_cols(format) - 1) / record_cols(format);
}
MILLRACE_HOST_DEVICE constexpr std::int64_t packed_bytes(WeightFormat format, std::int64_t rows,
                                                         std::int64_t cols) {
  return gemm_tiles(rows) * gemm_records(format, cols) * record_bytes(format);
}

// A packed weight [rows = N outputs, cols = K inputs] in device memory, 128-byte aligned. With gate
// and up packed together, rows counts both.
struct PackedWeight {
  const std::byte* data = nullptr;
  WeightFormat format = WeightFormat::kBf16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  MILLRACE_HOST_DEVICE constexpr std::int64_t bytes() const {
    return packed_bytes(format, rows, cols);
  }
};

// Byte of the piece that holds element (n, k) in a packed weight of `cols` columns.
MILLRACE_HOST_DEVICE constexpr std::int64_t piece_offset(WeightFormat format, std::int64_t cols,
                                                         std::int64_t n, std::int64_t k) {
  const std::int64_t record =
      n / kGemmTileRows * gemm_records(format, cols) + k / record_cols(format);
  return record * record_bytes(format) + n % kGemmTileRows / 16 * piece_bytes(format);
}
// Byte of element (n, k).
MILLRACE_HOST_DEVICE constexpr std::int64_t packed_offset(WeightFormat format, std::int64_t cols,
                                                          std::int64_t n, std::int64_t k) {
  const std::int64_t col = k % record_cols(format);
  const std::int64_t high = n % 16 / 8;               // 1: row g + 8
  const std::int64_t far = col % 16 / 8;              // 1: columns 2q + 8, 2q + 9
  const std::int64_t lane = n % 8 * 4 + col % 8 / 2;  // 4g + q
  const std::int64_t at = piece_offset(format, cols, n, k) + lane * 16;
  if (format == WeightFormat::kBf16) {
    return at + col / 16 * 512 + (far * 2 + high) * 4 + col % 2 * 2;
  }
  return at + col / 32 * 512 + (col % 32 / 16 * 2 + far) * 4 + high + col % 2 * 2;
}
// Byte of the bf16 multiplier of element (n, k), fp8 only.
MILLRACE_HOST_DEVICE constexpr std::int64_t multiplier_offset(std::int64_t cols, std::int64_t n,
                                                              std::int64_t k) {
  return piece_offset(WeightFormat::kFp8E4M3, cols, n, k) + kPieceValueBytes + n % 16 * 2;
}

MILLRACE_HOST_DEVICE constexpr std::int64_t gate_row(std::int64_t f) { return f / 8 * 16 + f % 8; }
MILLRACE_HOST_DEVICE constexpr std::int64_t up_row(std::int64_t f) { return gate_row(f) + 8; }

}  // namespace millrace::kernels::cuda
