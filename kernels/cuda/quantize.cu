#include "kernels/cuda/quantize.h"

#include "kernels/cuda/gemm_pack.cuh"
#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr WeightFormat kFormat = WeightFormat::kFp8E4M3;
constexpr int kCols = record_cols(kFormat);

// Bits of |x| order as the values do; from here on no scale can hold it. 57,344 = 1.75 * 2^15.
constexpr unsigned kTooLarge = 0x4760U;

// Smallest e with m <= 448 * 2^e = 1.75 * 2^(8 + e), from the bits of a bf16 m >= 0.
__device__ int scale_exponent(unsigned magnitude) {
  const int exponent = static_cast<int>(magnitude >> 7) - 127;
  const int e = exponent - 8 + ((magnitude & 0x7fU) > 0x60U ? 1 : 0);
  return min(max(e, kMinScaleExponent), kMaxScaleExponent);
}

// 2^e, for e in the range of normal numbers.
__device__ float power_of_two(int e) {
  return __uint_as_float(static_cast<unsigned>(e + 127) << 23);
}

__device__ unsigned magnitude_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x) & 0x7fffU; }

// One value over its scale; the division by a power of two is exact.
__device__ float scaled(__nv_bfloat16 x, int exponent) {
  if (magnitude_bits(x) > 0x7f80U) return 0;  // NaN
  return __bfloat162float(x) * power_of_two(-exponent);
}

// One block for each record: first the scale of every row, four threads a row, then the values in
// packed order.
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(PackedRows<const __nv_bfloat16> source, unsigned char* packed, int records,
                    std::uint32_t* unusable) {
  await_previous_kernel();
  __shared__ int exponents[kGemmTileRows];
  const int tile_row = static_cast<int>(blockIdx.x) / records * kGemmTileRows;
  const int first_col = static_cast<int>(blockIdx.x) % records * kCols;
  unsigned char* out = packed + static_cast<std::int64_t>(blockIdx.x) * record_bytes(kFormat);

  const int row = static_cast<int>(threadIdx.x) / 4;
  unsigned largest = 0;
  std::uint32_t bad = 0;
  for (int i = static_cast<int>(threadIdx.x) % 4; i < kCols; i += 4) {
    const unsigned m = magnitude_bits(source.at(tile_row + row, first_col + i));
    if (m > kTooLarge) {
      ++bad;
    } else {
      largest = max(largest, m);
    }
  }
  // What cannot be held does not choose the scale of its neighbours, but for the largest one.
  if (bad != 0) {
    largest = kTooLarge;
    atomicAdd(unusable, bad);
  }
  largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
  largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
  const int exponent = scale_exponent(largest);
  if (threadIdx.x % 4 == 0) {
    exponents[row] = exponent;
    unsigned char* piece = out + row / 16 * piece_bytes(kFormat);
    reinterpret_cast<std::uint16_t*>(piece + kPieceValueBytes)[row % 16] =
        static_cast<std::uint16_t>((exponent + kMultiplierBias + 127) << 7);
  }
  __syncthreads();

  for (int i = static_cast<int>(threadIdx.x); i < 4 * kPieceValueBytes / 16; i += kThreads) {
    const int lane = i % 32;
    const int r = i / 128 * 16 + lane / 4;
    const int n = tile_row + r;
    const int k = first_col + i / 32 % 4 * 32 + lane % 4 * 2;
    const auto pair = [&](int row_offset, int col) {
      const int e = exponents[r + row_offset];
      return static_cast<unsigned>(f32x2_to_e4m3x2(scaled(source.at(n + row_offset, col), e),
                                                   scaled(source.at(n + row_offset, col + 1), e)));
    };
    const auto word = [&](int col) {
      const unsigned low = pair(0, col);
      const unsigned high = pair(8, col);
      return (low & 0xffU) | (high & 0xffU) << 8 | (low >> 8) << 16 | (high >> 8) << 24;
    };
    reinterpret_cast<uint4*>(out + i / 128 * piece_bytes(kFormat))[i % 128] =
        make_uint4(word(k), word(k + 8), word(k + 16), word(k + 24));
  }
}

}  // namespace

void quantize_weight(StreamRef stream, const WeightRows& rows, std::byte* packed,
                     std::uint32_t* unusable) {
  const auto source = packed_rows(rows);
  const std::int64_t records = gemm_records(kFormat, source.cols);
  launch(quantize_kernel,
         {dim3(static_cast<unsigned>(gemm_tiles(source.rows) * records)), dim3(kThreads)}, stream,
         source, reinterpret_cast<unsigned char*>(packed), static_cast<int>(records), unusable);
}

}  // namespace millrace::kernels::cuda
