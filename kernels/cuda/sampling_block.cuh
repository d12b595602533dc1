// What a block of sampling.cu does together: sums, a search in a running sum, bins.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling.h"

namespace millrace::kernels::cuda {

// 256 threads and three blocks on a multiprocessor leave 80 registers: fewer would spill, and more
// threads in a block would have to do with fewer. The compiler needs a few more for sm_100.
inline constexpr int kSampleThreads = 256;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int kSampleBlocks = 2;
#else
inline constexpr int kSampleBlocks = 3;
#endif
inline constexpr int kSampleWarps = kSampleThreads / 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

// Digits of a radix search, steps of the coarse histogram.
inline constexpr int kBins = 2048;
// Ids [128 g, 128 g + 128) are group g: what a warp reads at once.
inline constexpr int kGroup = 128;
inline constexpr int kGroups = kMaxSampledVocab / kGroup;
// Candidates that fit into shared memory.
inline constexpr unsigned kMaxCandidates = 1760;

struct Crossing {
  int index;             // where the running sum reaches the target
  std::uint64_t before;  // the sum before it
};

// A row of logits and what step 1 of kernels/sampling.h does to it. In shared memory, to spare the
// registers.
struct RowState {
  const float* logits;
  const TokenCount* counts;  // null: no penalties
  int vocab;
  float repetition;
  float presence;
  float frequency;
  float max;          // of the logits after step 1
  float temperature;  // 1 for log-probabilities
  bool by_logit;      // keys order by the logit itself, not by x
};

struct SampleShared {
  RowState row;
  // Bytes, because shared variables have no constructors.
  alignas(SlotSampling) unsigned char sampling_bytes[sizeof(SlotSampling)];
  std::uint64_t position;
  double log_sum;
  // Sums of 64 bits in shared memory are slow (a loop of compare-and-swap); a weight of 45 bits is
  // added as three parts of 15 bits instead, whose sums over 2^17 tokens fit 32 bits.
  unsigned bins[3][kBins];
  std::uint64_t group_sums[kGroups];
  std::uint32_t keys[kMaxCandidates];
  std::int32_t ids[kMaxCandidates];
  unsigned candidates;
  std::uint64_t warp_sums[kSampleWarps];
  Crossing crossing;
  std::uint64_t group_weights[kGroup];
  float warp_max[kSampleWarps];
  std::int32_t warp_argmax[kSampleWarps];
  std::uint32_t top_keys[kMaxAlternatives];
  std::int32_t top_ids[kMaxAlternatives];
  unsigned top_count;

  __device__ __forceinline__ SlotSampling& sampling() {
    return *reinterpret_cast<SlotSampling*>(sampling_bytes);
  }
};

__device__ __forceinline__ void add_to_bin(SampleShared& s, int bin, std::uint64_t weight) {
  atomicAdd(&s.bins[0][bin], static_cast<unsigned>(weight & 0x7fffU));
  atomicAdd(&s.bins[1][bin], static_cast<unsigned>(weight >> 15 & 0x7fffU));
  atomicAdd(&s.bins[2][bin], static_cast<unsigned>(weight >> 30));
}

__device__ __forceinline__ std::uint64_t bin_sum(const SampleShared& s, int bin) {
  return s.bins[0][bin] + (std::uint64_t{s.bins[1][bin]} << 15) +
         (std::uint64_t{s.bins[2][bin]} << 30);
}

// Begins and ends with a barrier.
__device__ inline void clear_bins(SampleShared& s) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 3 * kBins; i += kSampleThreads) {
    s.bins[i / kBins][i % kBins] = 0;
  }
  __syncthreads();
}

__device__ __forceinline__ std::uint64_t warp_sum(std::uint64_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The sum of all threads' x, in every thread.
__device__ inline std::uint64_t block_sum(SampleShared& s, std::uint64_t x) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  std::uint64_t sum = 0;
#pragma unroll
  for (int w = 0; w < kSampleWarps; ++w) sum += s.warp_sums[w];
  return sum;
}

// The sum of x over the threads before this one.
__device__ inline std::uint64_t sum_before(SampleShared& s, std::uint64_t x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  std::uint64_t inclusive = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint64_t other = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();
  if (lane == 31) s.warp_sums[warp] = inclusive;
  __syncthreads();
  std::uint64_t before = inclusive - x;
  for (int w = 0; w < warp; ++w) before += s.warp_sums[w];
  return before;
}

// The sum of value(i) over the indices [thread * kPer, (thread + 1) * kPer).
template <int kPer, class Value>
__device__ __forceinline__ std::uint64_t own_sum(Value value) {
  std::uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i) sum += value(static_cast<int>(threadIdx.x) * kPer + i);
  return sum;
}

// Over indices [0, kPer * kSampleThreads): the first whose running sum of value(index) reaches
// `target`, which is at least 1 and at most the sum of all. `value` reads shared memory.
template <int kPer, class Value>
__device__ Crossing find_crossing(SampleShared& s, Value value, std::uint64_t target) {
  const std::uint64_t mine = own_sum<kPer>(value);
  std::uint64_t before = sum_before(s, mine);
  if (before < target && before + mine >= target) {
    int index = static_cast<int>(threadIdx.x) * kPer;
    while (before + value(index) < target) before += value(index++);
    s.crossing = {index, before};
  }
  __syncthreads();
  return s.crossing;
}

}  // namespace millrace::kernels::cuda
