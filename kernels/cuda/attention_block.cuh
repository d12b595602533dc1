// A block's way through one work item: stream the tiles, absorb them, fold the ranges, write.
#pragma once

#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/attention_stream.cuh"

namespace millrace::kernels::cuda {

struct AttentionParams {
  AttentionSource source;
  AttentionLists lists;
  const __nv_bfloat16* q;
  std::int64_t q_stride;
  __nv_bfloat16* out;
  std::int64_t out_stride;
  int heads;        // H
  int group_shift;  // log2(H / G)
  float scale;      // of scores, in units of log2: includes log2(e) and the scale of fp8 keys
  float v_scale;
};

// kWarps warps of kTiles mma tiles each, of which kHalves times 8 rows are in use. A warp alone is
// a block of its own and needs no barriers.
template <class F, int kTiles, int kHalves, int kWarps>
class AttentionBlock {
 public:
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 8 * kHalves * kTiles;
  using Stream = KvStream<F, kThreads>;
  static constexpr int kStages = kWarps > 1 && Stream::kStageBytes <= 16384 ? 3 : 2;
  static_assert(kHalves == 2 || kTiles == 1);
  static constexpr int kThreadRows = kTiles * kHalves;
  static constexpr int kFolded = kThreadRows * F::kOutTiles * 2;  // values of a thread
  static constexpr int kSmemBytes = kStages * Stream::kStageBytes + kFolded * kThreads * 4;

  __device__ __forceinline__ AttentionBlock(const AttentionParams& params, unsigned char* smem)
      : p_(params),
        smem_(smem),
        folded_(reinterpret_cast<float*>(smem + kStages * Stream::kStageBytes) + threadIdx.x) {}

  // `first` and `end` are the item's ranges to compute: all of them, or one.
  __device__ __forceinline__ void run(const AttentionItem& item, int g, bool split) {
    const int row_begin = static_cast<int>(threadIdx.x / 32) * kWarpRows;
    const int group = 1 << p_.group_shift;
    const int keys = item.position + item.tokens;
    const int tiles = (keys + kAttentionTile - 1) / kAttentionTile;
    const int first = split ? item.range * kRangeTiles : 0;
    const int end = split ? min(first + kRangeTiles, tiles) : tiles;
    // Positions this warp's rows see, or none where the item has fewer rows.
    const int first_seen = item.position + row_begin / group;
    const int last_seen = row_begin < item.tokens * group
                              ? min(keys - 1, item.position + (row_begin + kWarpRows - 1) / group)
                              : -1;
    barrier();  // the last item's shared memory was read
    Stream stream(p_.source, item.sequence, g, keys, first, end);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      stream.start(first + s, smem_ + s * Stream::kStageBytes);
    }
    load_q(item, g, row_begin);
    rows_.reset();
    int stage = 0;
#pragma unroll 1
    for (int tile = first; tile < end; ++tile) {
      cp_async_wait<kStages - 2>();
      barrier();  // the tile is there, and the one before it was read by all
      const int free_stage = stage == 0 ? kStages - 1 : stage - 1;
      stream.start(tile + kStages - 1, smem_ + free_stage * Stream::kStageBytes);
      const int first_key = tile * kAttentionTile;
      if (first_key <= last_seen) {
        const unsigned char* const keys_at = smem_ + stage * Stream::kStageBytes;
        rows_.absorb(keys_at, keys_at + F::kTileBytes, first_key + kAttentionTile - 1 > first_seen,
                     first_key, item.position, row_begin, p_.group_shift, p_.scale);
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
      if (tile % kRangeTiles == kRangeTiles - 1 || tile == end - 1) {
        rows_.close();
        if (!split) fold_range(tile < kRangeTiles, tile == end - 1);
      }
    }
    if (split) {
      store_partial(item, g);
    } else {
      store_out(item, g, row_begin);
    }
  }

 private:
  static __device__ __forceinline__ void barrier() {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ __forceinline__ bool locate(const AttentionItem& item, int g, int row, int& token,
                                         int& head) const {
    token = row >> p_.group_shift;
    head = (g << p_.group_shift) + (row & ((1 << p_.group_shift) - 1));
    return token < item.tokens;
  }

  // Fragments of q straight from memory; rows past the item's are zeros.
  __device__ __forceinline__ void load_q(const AttentionItem& item, int g, int row_begin) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        int token = 0;
        int head = 0;
        const bool valid = locate(item, g, row_begin + 16 * t + 8 * h + lane_row(), token, head);
        const __nv_bfloat16* const q =
            p_.q + (item.row + token) * p_.q_stride + static_cast<std::int64_t>(head) * F::kHeadDim;
#pragma unroll
        for (int s = 0; s < F::kSteps; ++s) {
          uint2 pairs = make_uint2(0, 0);
          if constexpr (kHalves == 1) rows_.q[t][s][1] = rows_.q[t][s][3] = 0;
          if constexpr (F::kHalf) {
            if (valid) pairs = *reinterpret_cast<const uint2*>(q + 16 * s + 4 * lane_quad());
            pairs = make_uint2(to_half2(pairs.x), to_half2(pairs.y));
          } else if (valid) {
            const __nv_bfloat16* const at = q + 16 * s + 2 * lane_quad();
            pairs.x = *reinterpret_cast<const std::uint32_t*>(at);
            pairs.y = *reinterpret_cast<const std::uint32_t*>(at + 8);
          }
          rows_.q[t][s][h] = pairs.x;
          rows_.q[t][s][2 + h] = pairs.y;
        }
      }
    }
  }

  static __device__ __forceinline__ std::uint32_t to_half2(std::uint32_t bf16_pair) {
    const float2 v = bf16x2_to_f32x2(bf16_pair);
    return f32x2_to_half2(v.x, v.y);
  }

  // The range just closed joins those before it, which wait in shared memory, each value with its
  // thread. After the last one the values are in registers again; otherwise the next range begins.
  __device__ __forceinline__ void fold_range(bool first, bool last) {
    if (first) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r)
        total_[r / kHalves][r % kHalves] = rows_.state[r / kHalves][r % kHalves];
    } else {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        const FoldWeights w =
            fold(total_[r / kHalves][r % kHalves], rows_.state[r / kHalves][r % kHalves], p_.scale);
#pragma unroll
        for (int e = 0; e < 2 * F::kOutTiles; ++e) {
          float& value = rows_.values[r / kHalves][e / 2][r % kHalves * 2 + e % 2];
          value = fold_value(folded(r, e), value, w);
        }
      }
    }
    if (last) return;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
      for (int e = 0; e < 2 * F::kOutTiles; ++e) {
        folded(r, e) = rows_.values[r / kHalves][e / 2][r % kHalves * 2 + e % 2];
      }
    }
    rows_.reset();
  }

  // Value e of this thread's rth row; neighbouring threads use neighbouring banks.
  __device__ __forceinline__ float& folded(int r, int e) const {
    return folded_[(r * 2 * F::kOutTiles + e) * kThreads];
  }

  __device__ __forceinline__ void store_out(const AttentionItem& item, int g, int row_begin) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        int token = 0;
        int head = 0;
        if (!locate(item, g, row_begin + 16 * t + 8 * h + lane_row(), token, head)) continue;
        const float inverse = __fdiv_rn(p_.v_scale, total_[t][h].sum);
        __nv_bfloat16* const out = p_.out + (item.row + token) * p_.out_stride +
                                   static_cast<std::int64_t>(head) * F::kHeadDim;
#pragma unroll
        for (int run = 0; run < F::kRuns; ++run) {
          std::uint32_t pairs[F::kRun / 2];
#pragma unroll
          for (int i = 0; i < F::kRun / 2; ++i) {
            pairs[i] = f32x2_to_bf16x2(finish_value(rows_.value(t, h, run, 2 * i), inverse),
                                       finish_value(rows_.value(t, h, run, 2 * i + 1), inverse));
          }
          __nv_bfloat16* const at = out + (run * 4 + lane_quad()) * F::kRun;
          if constexpr (F::kHalf) {
            *reinterpret_cast<uint2*>(at) = make_uint2(pairs[0], pairs[1]);
          } else {
            *reinterpret_cast<std::uint32_t*>(at) = pairs[0];
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store_partial(const AttentionItem& item, int g) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      int token = 0;
      int head = 0;
      if (!locate(item, g, 8 * h + lane_row(), token, head)) continue;
      const std::int64_t row =
          static_cast<std::int64_t>(item.unit + item.range * item.tokens + token) * p_.heads + head;
      const MaxSum state = rows_.state[0][h];
      float* const values = p_.lists.partials + row * partial_floats(F::kHeadDim);
      if (lane_quad() == 0) {
        *reinterpret_cast<float4*>(values + F::kHeadDim) = make_float4(state.max, state.sum, 0, 0);
      }
#pragma unroll
      for (int run = 0; run < F::kRuns; ++run) {
        float* const at = values + (run * 4 + lane_quad()) * F::kRun;
        if constexpr (F::kHalf) {
          *reinterpret_cast<float4*>(at) =
              make_float4(rows_.value(0, h, run, 0), rows_.value(0, h, run, 1),
                          rows_.value(0, h, run, 2), rows_.value(0, h, run, 3));
        } else {
          *reinterpret_cast<float2*>(at) =
              make_float2(rows_.value(0, h, run, 0), rows_.value(0, h, run, 1));
        }
      }
    }
  }

  const AttentionParams& p_;
  unsigned char* smem_;
  float* folded_;
  WarpRows<F, kTiles, kHalves> rows_;
  MaxSum total_[kTiles][kHalves];
};

}  // namespace millrace::kernels::cuda
