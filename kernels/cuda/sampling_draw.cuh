// Steps 2 to 6 of kernels/sampling.h for the row of a block.
#pragma once

#include <type_traits>

#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/sampling_select.cuh"

namespace millrace::kernels::cuda {

struct Largest {
  float value;
  std::int32_t id;  // the lowest with that value
  bool finite;      // false: NaN, +inf or nothing but -inf
};

__device__ __forceinline__ void take_larger(float& value, std::int32_t& id, float other,
                                            std::int32_t other_id) {
  if (other > value || (other == value && other_id < id)) {
    value = other;
    id = other_id;
  }
}

// In every thread.
__device__ inline Largest largest_logit(SampleShared& s, const RowSource& row) {
  float value = -INFINITY;
  std::int32_t id = 0x7fffffff;
  bool nan = false;
  row.for_each_logit([&](float logit, int token) {
    nan |= logit != logit;
    if (logit > value) {  // ascending ids within a thread: the first stays
      value = logit;
      id = token;
    }
  });
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, step);
    take_larger(value, id, other, __shfl_xor_sync(kAllLanes, id, step));
  }
  const bool any_nan = __syncthreads_or(nan ? 1 : 0) != 0;
  if (threadIdx.x % 32 == 0) {
    s.warp_max[threadIdx.x / 32] = value;
    s.warp_argmax[threadIdx.x / 32] = id;
  }
  __syncthreads();
  for (int w = 0; w < kSampleWarps; ++w) take_larger(value, id, s.warp_max[w], s.warp_argmax[w]);
  __syncthreads();
  return {value, id, !any_nan && value > -INFINITY && value < INFINITY};
}

// Steps of 1/64 below the largest; x beyond the last step has weight 0 and no bin.
__device__ __forceinline__ int coarse_bin(float x) {
  const float steps = __fmul_rn(x, -64.0F);
  return steps < static_cast<float>(kBins) ? static_cast<int>(steps) : kBins;
}

// Puts the tokens with x >= lowest_x into the list. False: they do not fit, the list is of no use.
__device__ inline bool gather(SampleShared& s, const RowSource& row, float lowest_x, int last_bin) {
  __syncthreads();
  if (threadIdx.x == 0) s.candidates = 0;
  __syncthreads();
  row.for_each_logit([&](float logit, int id) {
    const float x = row.x_of(logit);
    if (x < lowest_x || coarse_bin(x) > last_bin) return;
    const unsigned at = atomicAdd(&s.candidates, 1U);
    if (at >= kMaxCandidates) return;
    s.keys[at] = row.key_of(logit);
    s.ids[at] = id;
  });
  __syncthreads();
  return s.candidates <= kMaxCandidates;
}

struct CoarseCut {
  int last_bin;  // kBins - 1 when all that have a bin are fewer than k
  bool reached;  // whether k tokens have a bin
};

// The bin that holds the k-th largest.
__device__ inline CoarseCut coarse_top_k(SampleShared& s, const RowSource& row, std::uint64_t k) {
  constexpr int kPer = kBins / kSampleThreads;
  clear_bins(s);
  row.for_each_logit([&](float logit, int) {
    const int bin = coarse_bin(row.x_of(logit));
    if (bin < kBins) atomicAdd(&s.bins[0][bin], 1U);
  });
  __syncthreads();
  const auto count = [&](int bin) { return std::uint64_t{s.bins[0][bin]}; };
  const std::uint64_t total = block_sum(s, own_sum<kPer>(count));
  if (total < k) return {kBins - 1, false};
  return {find_crossing<kPer>(s, count, k).index, true};
}

template <class Source>
__device__ std::uint64_t kept_weight(SampleShared& s, const Source& source, const Kept& kept) {
  std::uint64_t sum = 0;
  source.for_each([&](std::uint32_t key, int id) { sum += kept.weight(key, id); });
  return block_sum(s, sum);
}

// floor of the smallest weight sum that top_p asks for, as in kernels/sampling.cc.
__device__ inline std::uint64_t top_p_cutoff(float top_p, std::uint64_t total) {
  const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  const auto cutoff = static_cast<std::uint64_t>(wanted);
  return cutoff < 1 ? 1 : cutoff > total ? total : cutoff;
}

// Steps 3 to 6 of kernels/sampling.h. `total`: the weight of the whole row when it is known and no
// top_k applies, else 0. The source may lack tokens that cannot be kept.
template <class Source>
__device__ std::int32_t filter_and_draw(SampleShared& s, const Source& source,
                                        const SlotSampling& p, bool top_k, std::uint64_t total) {
  Kept kept;
  if (top_k) {
    kept.last_key = select_key(
                        s, source, [](std::uint32_t) { return std::uint64_t{1}; },
                        static_cast<std::uint64_t>(p.top_k))
                        .key;
  }
  if (p.top_p < 1.0F) {
    const bool whole_row = std::is_same_v<Source, RowSource> && total != 0;
    const std::uint64_t present = whole_row ? total : kept_weight(s, source, kept);
    const std::uint64_t cutoff = top_p_cutoff(p.top_p, total != 0 ? total : present);
    // A source cut at min_p's bound may end before top_p does; then min_p alone decides.
    if (present >= cutoff) {
      const auto weight = [kept](std::uint32_t key) { return kept.weight(key, 0); };
      const KeyCrossing last = select_key(s, source, weight, cutoff);
      const std::uint64_t each = weight_of_key(last.key);
      const std::uint64_t wanted = (cutoff - last.before + each - 1) / each;
      kept.last_key = last.key;
      kept.last_id = select_id(
          s, source,
          [last](std::uint32_t key, int) { return std::uint64_t{key == last.key ? 1U : 0U}; },
          [wanted](std::uint64_t) { return wanted; });
    }
  }
  kept.min_p = p.min_p;
  return select_id(
      s, source, [kept](std::uint32_t key, int id) { return kept.weight(key, id); },
      [&](std::uint64_t sum) {
        const std::uint64_t bits = device_draw_bits(p.seed, p.choice, s.position);
        return static_cast<std::uint64_t>((static_cast<unsigned __int128>(bits) * sum) >> 64) + 1;
      });
}

// x below which neither top_p nor min_p can keep a token. For top_p: a token and all behind it
// weigh at most V times its weight, and go when that fits into what may be cut. 1e-3 is far more
// than the errors of exp and of the logarithms.
__device__ inline float filter_bound(const SlotSampling& p, std::uint64_t total, int vocab) {
  float bound = -INFINITY;
  if (p.top_p < 1.0F) {
    const std::uint64_t may_go =
        (total - top_p_cutoff(p.top_p, total)) / static_cast<unsigned>(vocab);
    const double weight = (static_cast<double>(may_go) + 1) / 0x1p44;
    bound = static_cast<float>(log(weight) - 1e-3);
  }
  if (p.min_p > 0.0F) {
    const auto least = static_cast<float>(log(static_cast<double>(p.min_p)) - 1e-3);
    bound = least > bound ? least : bound;
  }
  return bound;
}

// The token of a row after step 1, or kNoSampledToken.
__device__ __forceinline__ std::int32_t draw_token(SampleShared& s) {
  const RowSource row{&s.row};
  const SlotSampling& p = s.sampling();
  const Largest largest = largest_logit(s, row);
  if (!largest.finite) return kNoSampledToken;
  if (p.temperature == 0.0F) return largest.id;
  if (threadIdx.x == 0) {
    s.row.max = largest.value;
    s.row.temperature = p.temperature;
  }
  __syncthreads();

  // The candidates: by top_k's bin, or by what top_p and min_p can keep at all.
  const bool has_top_k = p.top_k > 0 && p.top_k < row.state->vocab;
  float lowest_x = -INFINITY;
  CoarseCut cut{kBins, false};
  std::uint64_t total = 0;
  if (has_top_k) {
    cut = coarse_top_k(s, row, static_cast<std::uint64_t>(p.top_k));
  } else {
    if (p.top_p < 1.0F) total = kept_weight(s, row, Kept{});
    lowest_x = filter_bound(p, total, row.state->vocab);
  }
  const bool filters = has_top_k || p.top_p < 1.0F || p.min_p > 0.0F;
  if (filters && gather(s, row, lowest_x, cut.last_bin)) {
    return filter_and_draw(s, ListSource{&s}, p, cut.reached, total);
  }
  return filter_and_draw(s, row, p, has_top_k, total);
}

}  // namespace millrace::kernels::cuda
