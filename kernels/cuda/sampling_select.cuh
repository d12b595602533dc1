// Exact selection among the tokens of a row, without a sort: by value (radix search on the bits)
// and by position in the vocabulary. A "source" is where the tokens are: the row itself, or the
// list of candidates in shared memory; both give (key, id) to a visitor, in no particular order.
#pragma once

#include "kernels/cuda/sampling_block.cuh"
#include "kernels/sampling_weight.h"

namespace millrace::kernels::cuda {

// The row itself, read anew at every visit.
struct RowSource {
  const RowState* state;

  __device__ __forceinline__ float penalised(float x, TokenCount count) const {
    if (count == 0) return x;
    x = x > 0 ? __fdiv_rn(x, state->repetition) : __fmul_rn(x, state->repetition);
    const int produced = count & kMaxOutputCount;
    if (produced > 0) {
      x = __fsub_rn(x, __fmul_rn(state->frequency, static_cast<float>(produced)));
      x = __fsub_rn(x, state->presence);
    }
    return x;
  }

  // Non-positive, the exponent of the weight.
  __device__ __forceinline__ float x_of(float logit) const {
    return __fdiv_rn(__fsub_rn(logit, state->max), state->temperature);
  }
  // Ascending keys are descending values; equal keys are equal values. Without by_logit the bits of
  // |x|, with it all bits of the logit in an order of unsigned numbers, -0 as +0.
  __device__ __forceinline__ std::uint32_t key_of(float logit) const {
    if (!state->by_logit) return __float_as_uint(x_of(logit)) & 0x7fffffffU;
    const std::uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0F));
    return (bits & 0x80000000U) != 0 ? bits : ~bits & 0x7fffffffU;
  }

  // visit(logit after step 1, id) for every token. Loads run ahead of the visits.
  template <class Visit>
  __device__ __forceinline__ void for_each_logit(Visit visit) const {
    constexpr int kAhead = 3;
    const float* const logits = state->logits;
    const TokenCount* const counts = state->counts;
    const int vocab = state->vocab;
    const int whole = vocab / 4 * 4;
    for (int base = 0; base < whole; base += kAhead * 4 * kSampleThreads) {
      float4 value[kAhead];
      ushort4 count[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int i = base + (u * kSampleThreads + static_cast<int>(threadIdx.x)) * 4;
        count[u] = make_ushort4(0, 0, 0, 0);
        if (i >= whole) continue;
        value[u] = *reinterpret_cast<const float4*>(logits + i);
        if (counts != nullptr) count[u] = *reinterpret_cast<const ushort4*>(counts + i);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int i = base + (u * kSampleThreads + static_cast<int>(threadIdx.x)) * 4;
        if (i >= whole) continue;
        visit(penalised(value[u].x, count[u].x), i);
        visit(penalised(value[u].y, count[u].y), i + 1);
        visit(penalised(value[u].z, count[u].z), i + 2);
        visit(penalised(value[u].w, count[u].w), i + 3);
      }
    }
    const int rest = whole + static_cast<int>(threadIdx.x);
    if (rest < vocab) visit(logit_at(rest), rest);
  }

  __device__ __forceinline__ float logit_at(int id) const {
    return penalised(state->logits[id],
                     state->counts == nullptr ? TokenCount{0} : state->counts[id]);
  }

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for_each_logit([&](float logit, int id) { visit(key_of(logit), id); });
  }
};

struct ListSource {
  const SampleShared* shared;

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for (unsigned i = threadIdx.x; i < shared->candidates; i += kSampleThreads) {
      visit(shared->keys[i], shared->ids[i]);
    }
  }
};

// The weight of a token from its key, which is |x|.
__device__ __forceinline__ float exp_of_key(std::uint32_t key) {
  return sampling_weight::exp_nonpositive<int>(__uint_as_float(key | 0x80000000U));
}
__device__ __forceinline__ std::uint64_t weight_of_key(std::uint32_t key) {
  return sampling_weight::weight_of(exp_of_key(key));
}

// Which tokens the filters have left so far, by thresholds.
struct Kept {
  std::uint32_t last_key = 0xffffffffU;  // the largest that is in
  std::int32_t last_id = 0x7fffffff;     // of the tokens with that key, the largest id that is in
  float min_p = 0;

  __device__ __forceinline__ std::uint64_t weight(std::uint32_t key, int id) const {
    if (key > last_key || (key == last_key && id > last_id)) return 0;
    const float probability = exp_of_key(key);
    return probability >= min_p ? sampling_weight::weight_of(probability) : 0;
  }
};

struct KeyCrossing {
  std::uint32_t key;
  std::uint64_t before;  // the measure of all smaller keys
};

// In ascending order of keys, the first key at which the sum of measure(key) reaches `target`: at
// least 1, at most the sum of all. Three passes over 11, 11 and 10 bits.
template <class Source, class Measure>
__device__ KeyCrossing select_key(SampleShared& s, const Source& source, Measure measure,
                                  std::uint64_t target) {
  constexpr int kPer = kBins / kSampleThreads;
  std::uint32_t prefix = 0;
  std::uint64_t before = 0;
  for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
    const int bits = shift == 0 ? 10 : 11;
    const std::uint32_t mask = (1U << bits) - 1;
    clear_bins(s);
    source.for_each([&](std::uint32_t key, int) {
      // The bits above this digit; none in the first pass.
      if (shift + bits < 32 && key >> (shift + bits) != prefix) return;
      const std::uint64_t amount = measure(key);
      if (amount != 0) add_to_bin(s, static_cast<int>(key >> shift & mask), amount);
    });
    __syncthreads();
    const Crossing crossing = find_crossing<kPer>(
        s, [&](int bin) { return bin_sum(s, bin); }, target - before);
    prefix = prefix << bits | static_cast<std::uint32_t>(crossing.index);
    before += crossing.before;
  }
  return {prefix, before};
}

// Sums of measure(key, id) over the groups of ids.
template <class Measure>
__device__ void sum_groups(SampleShared& s, const RowSource& source, Measure measure) {
  constexpr int kAhead = 2;  // groups whose loads a warp has in flight
  constexpr int kPer = kGroup / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int groups = (source.state->vocab + kGroup - 1) / kGroup;
  for (int first = warp; first < groups; first += kAhead * kSampleWarps) {
    float logit[kAhead][kPer];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const int id = (first + u * kSampleWarps) * kGroup + i * 32 + lane;
        logit[u][i] = id < source.state->vocab ? source.logit_at(id) : 0;
      }
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      std::uint64_t sum = 0;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const int id = (first + u * kSampleWarps) * kGroup + i * 32 + lane;
        if (id < source.state->vocab) sum += measure(source.key_of(logit[u][i]), id);
      }
      sum = warp_sum(sum);
      if (lane == 0 && first + u * kSampleWarps < groups) {
        s.group_sums[first + u * kSampleWarps] = sum;
      }
    }
  }
}
template <class Measure>
__device__ void sum_groups(SampleShared& s, const ListSource& source, Measure measure) {
  clear_bins(s);
  source.for_each([&](std::uint32_t key, int id) {
    const std::uint64_t amount = measure(key, id);
    if (amount != 0) add_to_bin(s, id / kGroup, amount);
  });
  __syncthreads();
  for (int g = static_cast<int>(threadIdx.x); g < kGroups; g += kSampleThreads) {
    s.group_sums[g] = bin_sum(s, g);
  }
}

template <class Measure>
__device__ void fill_group(SampleShared& s, const RowSource& source, int group, Measure measure) {
  const int id = group * kGroup + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kGroup && id < source.state->vocab) {
    s.group_weights[threadIdx.x] = measure(source.key_of(source.logit_at(id)), id);
  }
}
template <class Measure>
__device__ void fill_group(SampleShared& s, const ListSource& source, int group, Measure measure) {
  source.for_each([&](std::uint32_t key, int id) {
    if (id / kGroup == group) s.group_weights[id % kGroup] = measure(key, id);
  });
}

// In ascending order of ids, the first id at which the sum of measure(key, id) reaches
// target(sum of all), which is at least 1 and at most that sum.
template <class Source, class Measure, class Target>
__device__ std::int32_t select_id(SampleShared& s, const Source& source, Measure measure,
                                  Target target_of) {
  constexpr int kPer = kGroups / kSampleThreads;
  __syncthreads();
  for (int g = static_cast<int>(threadIdx.x); g < kGroups; g += kSampleThreads) s.group_sums[g] = 0;
  if (threadIdx.x < kGroup) s.group_weights[threadIdx.x] = 0;
  __syncthreads();
  sum_groups(s, source, measure);
  __syncthreads();
  const auto group_sum = [&](int g) { return s.group_sums[g]; };
  const std::uint64_t target = target_of(block_sum(s, own_sum<kPer>(group_sum)));
  const Crossing group = find_crossing<kPer>(s, group_sum, target);
  fill_group(s, source, group.index, measure);
  __syncthreads();
  const auto weight = [&](int i) { return i < kGroup ? s.group_weights[i] : 0; };
  const Crossing place = find_crossing<1>(s, weight, target - group.before);
  return group.index * kGroup + place.index;
}

}  // namespace millrace::kernels::cuda
