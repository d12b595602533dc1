// The arithmetic of attention for the rows of one warp: every path of every kernel goes through the
// functions here, and operations are spelled out (__fmaf_rn, ...) so that no compiler contracts
// them differently in two places. That, and the fixed tiles and ranges, are contract C1.
#pragma once

#include "kernels/cuda/attention_fragments.cuh"

namespace millrace::kernels::cuda {

// Maximum, sum of weights and weighted values of ranges folded together so far, or of one range;
// maxima are of unscaled scores. `scale` is the score's scale times log2(e).
struct MaxSum {
  float max;
  float sum;
};

// Adds a later range's to `total`; the weighted values follow by fold_value. A range whose keys the
// row does not see has maximum -inf and sum 0: it is added with weight 0, and the total's weight
// is 1.
struct FoldWeights {
  float before;
  float range;
};
__device__ __forceinline__ FoldWeights fold(MaxSum& total, MaxSum range, float scale) {
  const float max = fmaxf(total.max, range.max);
  const FoldWeights w = {ex2_approx(__fmul_rn(__fsub_rn(total.max, max), scale)),
                         ex2_approx(__fmul_rn(__fsub_rn(range.max, max), scale))};
  total.max = max;
  total.sum = __fmaf_rn(range.sum, w.range, __fmul_rn(total.sum, w.before));
  return w;
}
__device__ __forceinline__ float fold_value(float total, float range, FoldWeights w) {
  return __fmaf_rn(range, w.range, __fmul_rn(total, w.before));
}
// The last step. Adding +0 drops the sign of a zero, in which masked tiles may differ.
__device__ __forceinline__ float finish_value(float total, float inverse_sum) {
  return __fmaf_rn(total, inverse_sum, 0.0F);
}

// 16 * kTiles rows of a warp: their q, and the state of the range they are in. Element [t][2h + i]
// of accumulators belongs to row 16t + 8h + lane / 4. With kHalves 1 only rows 0 to 7 of each tile
// are in use: the others are multiplied along as zeros, and nothing else is done for them.
template <class F, int kTiles, int kHalves>
struct WarpRows {
  std::uint32_t q[kTiles][F::kSteps][4];
  float values[kTiles][F::kOutTiles][4];
  MaxSum state[kTiles][kHalves];  // sum: of this lane's keys only, until close()

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < F::kOutTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) values[t][j][e] = 0;
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) state[t][h] = {MILLRACE_NEGATIVE_INFINITY, 0};
    }
  }

  // The 64 keys and values from position `first_key` on. Where `masked`, row r does not see keys
  // after `first_position` + (row_begin + r) / group.
  __device__ __forceinline__ void absorb(const unsigned char* keys, const unsigned char* vals,
                                         bool masked, int first_key, int first_position,
                                         int row_begin, int group_shift, float scale) {
    float s[kTiles][kKeyTiles][4];
    score(s, keys);
    if (masked) mask(s, first_key, first_position, row_begin, group_shift);
    weigh(s, scale);
    add_values(s, vals);
  }

  // Ends a range: every lane of a row gets the row's sum.
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float& sum = state[t][h].sum;
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 1));
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 2));
      }
    }
  }

  // Component run * 4 * kRun + lane_quad() * kRun + i of row 16t + 8h + lane_row().
  __device__ __forceinline__ float& value(int t, int h, int run, int i) {
    if constexpr (F::kHalf) return values[t][2 * run + i % 2][2 * h + i / 2];
    return values[t][run][2 * h + i];
  }

 private:
  using Scores = float[kTiles][kKeyTiles][4];

  __device__ __forceinline__ void score(Scores& s, const unsigned char* keys) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[t][j][e] = 0;
      }
    }
    using Fragments = KeyFragments<F>;
    const int lane_offset = Fragments::lane_offset();
#pragma unroll
    for (int c = 0; c < F::kChunks; c += 2) {
#pragma unroll
      for (int j = 0; j < kKeyTiles; j += 2) {
        const Fragments k(keys, lane_offset, j, c);
#pragma unroll
        for (int step = 0; step < Fragments::kSteps; ++step) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            F::mma(s[t][j], q[t][c / 2 * Fragments::kSteps + step], k.b[0][step]);
            F::mma(s[t][j + 1], q[t][c / 2 * Fragments::kSteps + step], k.b[1][step]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void mask(Scores& s, int first_key, int first_position, int row_begin,
                                       int group_shift) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int row = row_begin + 16 * t + 8 * h + lane_row();
        // Keys this lane may see, counted from its first.
        const int seen = first_position + (row >> group_shift) + 1 - first_key - 2 * lane_quad();
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (8 * j + i >= seen) s[t][j][2 * h + i] = MILLRACE_NEGATIVE_INFINITY;
          }
        }
      }
    }
  }

  // Scores become weights; the state moves on to the new maximum. A row that sees none of the keys
  // keeps its maximum, is multiplied by exactly 1 and gets exact zeros added.
  __device__ __forceinline__ void weigh(Scores& s, float scale) {
    float rescale[kTiles][kHalves];
    bool moved = false;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        rescale[t][h] = weigh_row(s[t], h, state[t][h], scale);
        moved = moved || rescale[t][h] != 1.0F;
      }
    }
    // Multiplying by 1 changes no bit, so leaving it out may depend on the other rows.
    if (!__any_sync(kAllLanes, moved)) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < F::kOutTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 2 * kHalves; ++e) {
          values[t][j][e] = __fmul_rn(values[t][j][e], rescale[t][e / 2]);
        }
      }
    }
  }

  static __device__ __forceinline__ float weigh_row(float (&s)[kKeyTiles][4], int h, MaxSum& state,
                                                    float scale) {
    float max = s[0][2 * h];
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) max = fmaxf(max, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
    max = fmaxf(max, state.max);
    // Nothing seen yet: any finite number in its place gives weights exp2(-inf) = 0.
    const float offset = max == MILLRACE_NEGATIVE_INFINITY ? 0.0F : max;
    const float rescale = ex2_approx(__fmul_rn(__fsub_rn(state.max, offset), scale));
    const float scaled = __fmul_rn(offset, -scale);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      float& a = s[j][2 * h];
      float& b = s[j][2 * h + 1];
      a = ex2_approx(__fmaf_rn(a, scale, scaled));
      b = ex2_approx(__fmaf_rn(b, scale, scaled));
      sum = __fadd_rn(sum, __fadd_rn(a, b));
    }
    state = {max, __fmaf_rn(state.sum, rescale, sum)};
    return rescale;
  }

  // The scores' accumulators of two mma tiles are, packed, the other mma's operand of 16 keys.
  __device__ __forceinline__ void add_values(const Scores& weights, const unsigned char* vals) {
    using Fragments = ValueFragments<F>;
    const int lane_offset = Fragments::lane_offset();
#pragma unroll
    for (int step = 0; step < kKeyTiles / 2; ++step) {
      std::uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&w)[4] = weights[t][2 * step + i / 2];
          a[t][i] = i % 2 < kHalves ? F::pack(w[i % 2 * 2], w[i % 2 * 2 + 1]) : 0;
        }
      }
#pragma unroll
      for (int c = 0; c < F::kChunks; c += 2) {
        const Fragments v(vals, lane_offset, step, c);
#pragma unroll
        for (int i = 0; i < Fragments::kTiles; ++i) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            F::mma(values[t][c * Fragments::kTiles / 2 + i], a[t], v.b[i]);
          }
        }
      }
    }
  }
};

}  // namespace millrace::kernels::cuda
