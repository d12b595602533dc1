#include "kernels/cuda/short_conv.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 128;
// Rows that one block takes of a long step, so that rows before a row are found in L1. A step of
// few rows is spread over as many blocks as there are rows. No bit depends on this.
constexpr std::int64_t kRowsPerBlock = 8;
constexpr std::int64_t kSpreadRows = 512;

struct Conv {
  const __nv_bfloat16* bcx;
  std::int64_t bcx_stride;
  const float* taps;
  const ConvChunk* chunks;
  const std::int32_t* sequences;
  __nv_bfloat16* state;
  std::int64_t state_stride;
  __nv_bfloat16* out;
  std::int64_t out_stride;
  std::int32_t tokens;
  std::int32_t d;
  std::int32_t num_taps;
};

// s of channels [c, c + 8) at `column` columns after the chunk's first row; before it lies the
// state.
__device__ __forceinline__ Vec8 s_column(const Conv& a, const ConvChunk& chunk, int num_taps,
                                         int column, int c) {
  if (column < 0) {
    const std::int64_t at =
        std::int64_t{chunk.slot} * a.state_stride + std::int64_t{num_taps - 1 + column} * a.d + c;
    return load8(a.state + at);
  }
  const __nv_bfloat16* row = a.bcx + std::int64_t{chunk.row_begin + column} * a.bcx_stride + c;
  const Vec8 b = load8(row);
  const Vec8 x = load8(row + 2 * a.d);
  Vec8 s;
#pragma unroll
  for (int i = 0; i < kVec; ++i) s.v[i] = __fmul_rn(b.v[i], x.v[i]);
  return round_bf16(s);
}

template <int kTaps>
__device__ __forceinline__ float tap(const Conv& a, const float (&taps)[kVec * (kTaps ? kTaps : 1)],
                                     int num_taps, int c, int i, int j) {
  if constexpr (kTaps != 0) return taps[i * kTaps + j];
  return a.taps[std::int64_t{c + i} * num_taps + j];
}

// One row of the output.
template <int kTaps>
__device__ __forceinline__ void conv_row(const Conv& a, const ConvChunk& chunk,
                                         const float (&taps)[kVec * (kTaps ? kTaps : 1)],
                                         int num_taps, int local, int c) {
  Vec8 sum;
#pragma unroll
  for (int j = 0; j < (kTaps ? kTaps : num_taps); ++j) {
    const Vec8 s = s_column(a, chunk, num_taps, local - (num_taps - 1) + j, c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float w = tap<kTaps>(a, taps, num_taps, c, i, j);
      sum.v[i] = j == 0 ? __fmul_rn(w, s.v[i]) : __fmaf_rn(w, s.v[i], sum.v[i]);
    }
  }
  const std::int64_t row = chunk.row_begin + local;
  const Vec8 gate = load8(a.bcx + row * a.bcx_stride + a.d + c);
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum.v[i] = __fmul_rn(gate.v[i], sum.v[i]);
  store8(a.out + row * a.out_stride + c, sum);
}

// The chunk's first L - 1 rows, which read the state, and then the new state, by the same thread:
// so one thread alone touches these eight channels of the slot.
template <int kTaps>
__device__ __forceinline__ void conv_head(const Conv& a, const ConvChunk& chunk,
                                          const float (&taps)[kVec * (kTaps ? kTaps : 1)],
                                          int num_taps, int c) {
  const int history = num_taps - 1;
  for (int local = 0; local < history && local < chunk.length; ++local) {
    conv_row<kTaps>(a, chunk, taps, num_taps, local, c);
  }
  // Ascending, so a column kept from the old state is read before it is overwritten.
  const auto leave = [&](int length, int slot) {
    __nv_bfloat16* state = a.state + std::int64_t{slot} * a.state_stride + c;
    for (int j = 0; j < history; ++j) {
      const Vec8 s = s_column(a, chunk, num_taps, length - history + j, c);
      store8(state + std::int64_t{j} * a.d, s);
    }
  };
#pragma unroll
  for (std::size_t i = 0; i < kConvSaves; ++i) {
    const ConvSave save = chunk.saves[i];
    if (save.slot >= 0) leave(save.length, save.slot);
  }
  leave(chunk.length, chunk.slot);
}

// kTaps 0: any L, with the taps read where they are used.
template <int kTaps>
__global__ void __launch_bounds__(kThreads) short_conv_kernel(Conv a, int rows_per_block) {
  await_previous_kernel();
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * kVec;
  if (c >= a.d) return;
  const int num_taps = kTaps ? kTaps : a.num_taps;
  float taps[kVec * (kTaps ? kTaps : 1)] = {};
  if constexpr (kTaps != 0) {
    // kVec * kTaps consecutive floats, a multiple of 8 of them from a multiple of 8.
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      const Vec8 part = load8(a.taps + std::int64_t{c} * kTaps + i * kVec);
#pragma unroll
      for (int j = 0; j < kVec; ++j) taps[i * kVec + j] = part.v[j];
    }
  }
  const int begin = static_cast<int>(blockIdx.y) * rows_per_block;
  const int end = min(begin + rows_per_block, a.tokens);
  for (int t = begin; t < end; ++t) {
    const std::int32_t sequence = a.sequences[t];
    const ConvChunk chunk = sequence >= 0 ? a.chunks[sequence] : ConvChunk{};
    if (sequence < 0 || chunk.slot < 0) {
      store8(a.out + std::int64_t{t} * a.out_stride + c, Vec8{});
      continue;
    }
    const int local = t - chunk.row_begin;
    if (local == 0) {
      conv_head<kTaps>(a, chunk, taps, num_taps, c);
    } else if (local >= num_taps - 1) {
      conv_row<kTaps>(a, chunk, taps, num_taps, local, c);
    }
  }
}

constexpr int kMoveThreads = 256;

// A block for each (move, layer).
__global__ void __launch_bounds__(kMoveThreads)
    move_conv_state_kernel(__nv_bfloat16* state, std::int64_t layer_stride,
                           std::int64_t slot_elements, const ConvMove* moves) {
  await_previous_kernel();
  const ConvMove move = moves[blockIdx.x];
  __nv_bfloat16* layer = state + blockIdx.y * layer_stride;
  __nv_bfloat16* to = layer + move.slot * slot_elements;
  const __nv_bfloat16* from = layer + move.from * slot_elements;
  for (std::int64_t i = threadIdx.x * kVec; i < slot_elements; i += kMoveThreads * kVec) {
    *reinterpret_cast<uint4*>(to + i) =
        move.from < 0 ? make_uint4(0, 0, 0, 0) : *reinterpret_cast<const uint4*>(from + i);
  }
}

}  // namespace

void short_conv(StreamRef stream, const ShortConvArgs& a) {
  const std::int64_t tokens = a.out.rows();
  const std::int64_t d = a.out.cols();
  const std::int64_t num_taps = a.taps.cols();
  CHECK(d > 0 && d % kVec == 0 && a.bcx.cols() == 3 * d && a.bcx.rows() == tokens &&
            a.taps.rows() == d && a.taps.row_stride == num_taps && a.bcx.row_stride % kVec == 0 &&
            a.out.row_stride % kVec == 0,
        "bcx=[{}, {}] stride {} taps=[{}, {}] out=[{}, {}] stride {}", a.bcx.rows(), a.bcx.cols(),
        a.bcx.row_stride, a.taps.rows(), num_taps, tokens, d, a.out.row_stride);
  CHECK(num_taps >= 2 && num_taps <= kMaxConvTaps && a.state.shape[1] == num_taps - 1 &&
            a.state.shape[2] == d && a.state.row_stride % kVec == 0,
        "L={} D={} state=[{}, {}, {}]", num_taps, d, a.state.rows(), a.state.shape[1],
        a.state.shape[2]);
  const Conv conv{device_cast(a.bcx.data),
                  a.bcx.row_stride,
                  a.taps.data,
                  a.chunks,
                  a.sequences,
                  device_cast(a.state.data),
                  a.state.row_stride,
                  device_cast(a.out.data),
                  a.out.row_stride,
                  static_cast<std::int32_t>(tokens),
                  static_cast<std::int32_t>(d),
                  static_cast<std::int32_t>(num_taps)};
  const int rows_per_block = tokens <= kSpreadRows ? 1 : static_cast<int>(kRowsPerBlock);
  const auto blocks_x = static_cast<unsigned>((d / kVec + kThreads - 1) / kThreads);
  const auto blocks_y = static_cast<unsigned>((tokens + rows_per_block - 1) / rows_per_block);
  const LaunchShape shape{dim3(blocks_x, blocks_y), dim3(kThreads)};
  if (num_taps == 3) {
    launch(short_conv_kernel<3>, shape, stream, conv, rows_per_block);
  } else {
    launch(short_conv_kernel<0>, shape, stream, conv, rows_per_block);
  }
}

void move_conv_state(StreamRef stream, const MoveConvStateArgs& a) {
  CHECK(a.slot_elements % kVec == 0 && a.layer_stride % kVec == 0 && a.layers >= 0 && a.count >= 0,
        "layers={} stride {} slot {} count={}", a.layers, a.layer_stride, a.slot_elements, a.count);
  launch(
      move_conv_state_kernel,
      {dim3(static_cast<unsigned>(a.count), static_cast<unsigned>(a.layers)), dim3(kMoveThreads)},
      stream, device_cast(a.state), a.layer_stride, a.slot_elements, a.moves);
}

}  // namespace millrace::kernels::cuda
