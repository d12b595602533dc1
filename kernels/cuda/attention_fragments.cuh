// Tiles of keys and values in shared memory, and the fragments of them that the mma takes.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace millrace::kernels::cuda {

inline constexpr int kKeyTiles = kAttentionTile / 8;  // mma tiles along the keys
inline constexpr unsigned kAllLanes = 0xffffffffU;
#define MILLRACE_NEGATIVE_INFINITY __uint_as_float(0xff800000U)

// A tile of keys (or values) in shared memory as it lies in the pages, and its fragments.
//
// bf16: fragments as ldmatrix delivers them. e4m3: ldmatrix moves pairs of bytes, so a lane gets
// four adjacent components where the mma wants two and two that are eight apart. Nothing is
// shuffled:
//   - scores sum over components, so these are permuted alike in q and k: in step s, mma index
//     2c + i is component 16s + 4c + i, and 2c + 8 + i is 16s + 4c + 2 + i (c = lane % 4);
//   - of the weighted values two neighbouring mma tiles hold the even and the odd components.
template <int kHeadDim_, KvType kType_>
struct KvFormat {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr KvType kType = kType_;
  static constexpr bool kHalf = kType == KvType::kFp8E4M3;  // the mma works on f16
  static constexpr int kRowBytes = kHeadDim * (kHalf ? 1 : 2);
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kAttentionTile * kRowBytes;
  static constexpr int kSteps = kHeadDim / 16;  // of the scores' mma
  static constexpr int kOutTiles = kHeadDim / 8;
  // Adjacent components of a row that one lane holds after the weighted sum.
  static constexpr int kRun = kHalf ? 4 : 2;
  static constexpr int kRuns = kHeadDim / (4 * kRun);

  // 16-byte columns are permuted so that eight rows of one column lie in different banks. Bits of
  // rows and columns stay apart, so offset(row | r, chunk | c) == (offset(row, chunk) ^ (c * 16)) +
  // r * kRowBytes for even chunks and r a multiple of 8: that is how fragments are addressed.
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ swizzle(row)) * 16);
  }
  static __device__ __forceinline__ constexpr int swizzle(int row) {
    constexpr int kLineRows = kChunks >= 8 ? 1 : 8 / kChunks;
    constexpr int kMask = (kChunks >= 8 ? 8 : kChunks) - 1;
    return (row / kLineRows) & kMask;
  }

  static __device__ __forceinline__ std::uint32_t pack(float lo, float hi) {
    if constexpr (kHalf) return f32x2_to_half2(lo, hi);
    return f32x2_to_bf16x2(lo, hi);
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
    if constexpr (kHalf) {
      mma_m16n8k16_f16(d, a, b);
    } else {
      mma_m16n8k16_bf16(d, a, b);
    }
  }
};

// What a lane knows of its place in the mma's accumulators.
__device__ __forceinline__ int lane_row() { return static_cast<int>(threadIdx.x % 32 / 4); }
__device__ __forceinline__ int lane_quad() { return static_cast<int>(threadIdx.x % 4); }

// Fragments of two mma tiles of 8 keys, from key 8 * tile on, of columns chunk and chunk + 1.
template <class F>
struct KeyFragments {
  static constexpr int kSteps = F::kHalf ? 2 : 1;
  std::uint32_t b[2][kSteps][2];

  // What a lane passes as `lane_offset`: its row of ldmatrix for tile 0, chunk 0.
  static __device__ __forceinline__ int lane_offset() {
    const unsigned lane = threadIdx.x % 32;
    return F::offset(static_cast<int>(lane / 16 * 8 + lane % 8), static_cast<int>(lane / 8 % 2));
  }

  __device__ __forceinline__ KeyFragments(const unsigned char* keys, int lane_offset, int tile,
                                          int chunk) {
    std::uint32_t r[4];
    ldmatrix_x4(r, keys + (lane_offset ^ (chunk * 16)) + tile * 8 * F::kRowBytes);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (F::kHalf) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          b[i][s][0] = e4m3x2_to_half2(static_cast<std::uint16_t>(r[2 * i + s] & 0xffffU));
          b[i][s][1] = e4m3x2_to_half2(static_cast<std::uint16_t>(r[2 * i + s] >> 16));
        }
      } else {
        b[i][0][0] = r[2 * i];
        b[i][0][1] = r[2 * i + 1];
      }
    }
  }
};

// Fragments of 16 values from key 16 * step on, of the components in columns chunk and chunk + 1.
template <class F>
struct ValueFragments {
  static constexpr int kTiles = F::kHalf ? 4 : 2;
  std::uint32_t b[kTiles][2];

  static __device__ __forceinline__ int lane_offset() {
    const unsigned lane = threadIdx.x % 32;
    return F::offset(static_cast<int>(lane % 16), static_cast<int>(lane / 16));
  }

  __device__ __forceinline__ ValueFragments(const unsigned char* values, int lane_offset, int step,
                                            int chunk) {
    std::uint32_t r[4];
    ldmatrix_x4_trans(r, values + (lane_offset ^ (chunk * 16)) + step * 16 * F::kRowBytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (F::kHalf) {
        // Bytes (key 0: even, odd; key 1: even, odd) to (both keys' even, both keys' odd).
        const std::uint32_t sorted = __byte_perm(r[i], 0, 0x3120);
        b[i / 2 * 2][i % 2] = e4m3x2_to_half2(static_cast<std::uint16_t>(sorted & 0xffffU));
        b[i / 2 * 2 + 1][i % 2] = e4m3x2_to_half2(static_cast<std::uint16_t>(sorted >> 16));
      } else {
        b[i / 2][i % 2] = r[i];
      }
    }
  }
};

}  // namespace millrace::kernels::cuda
