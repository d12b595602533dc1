#include "kernels/cuda/router.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/moe_permute.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffU;
constexpr std::int32_t kNone = 0x7fffffff;

struct Route {
  const float* logits;
  std::int64_t logits_stride;
  const float* bias;
  const std::int32_t* sequences;
  std::int32_t* ids;
  std::int64_t ids_stride;
  float* weights;
  std::int64_t weights_stride;
  std::int32_t tokens;
  std::int32_t experts;
  std::int32_t top_k;
  bool normalize;
  float scaling_factor;
};

struct Best {
  float rank;
  std::int32_t expert;
};

// The greater rank, ties to the lower index. `kNone` with -inf loses to every expert.
__device__ __forceinline__ Best better(Best a, Best b) {
  const bool second = b.rank > a.rank || (b.rank == a.rank && b.expert < a.expert);
  return second ? b : a;
}

// A warp for each token; lane l has experts l, l + 32, ... Experts already chosen are the bits of
// `taken` beside them.
template <int kPerLane>
__device__ Best best_of_warp(const float (&rank)[kPerLane], unsigned taken, int lane) {
  Best best{-INFINITY, kNone};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if ((taken >> i & 1U) == 0) best = better(best, {rank[i], i * 32 + lane});
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    best = better(
        best, {__shfl_xor_sync(kAll, best.rank, step), __shfl_xor_sync(kAll, best.expert, step)});
  }
  return best;
}

template <int kPerLane>
__device__ void route_token(const Route& a, std::int64_t t, int lane) {
  float score[kPerLane];
  float rank[kPerLane];
  unsigned taken = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    score[i] = 0;
    rank[i] = -INFINITY;
    if (e >= a.experts) {
      taken |= 1U << i;
      continue;
    }
    score[i] = sigmoid_f32(a.logits[t * a.logits_stride + e]);
    const float biased = a.bias == nullptr ? score[i] : __fadd_rn(score[i], a.bias[e]);
    rank[i] = biased == biased ? biased : -INFINITY;  // NaN ranks last
  }
  // Lane k keeps the k-th choice.
  std::int32_t my_expert = kNone;
  float my_score = 0;
  for (int k = 0; k < a.top_k; ++k) {
    const Best best = best_of_warp(rank, taken, lane);
    float chosen_score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (best.expert != i * 32 + lane) continue;
      taken |= 1U << i;
      chosen_score = score[i];
    }
    chosen_score = __shfl_sync(kAll, chosen_score, best.expert % 32);
    if (lane == k) {
      my_expert = best.expert;
      my_score = chosen_score;
    }
  }
  // Ascending order of expert: my place, and the sum over all in that order.
  int place = 0;
  for (int k = 0; k < a.top_k; ++k) place += __shfl_sync(kAll, my_expert, k) < my_expert ? 1 : 0;
  float sum = 0;
  for (int p = 0; p < a.top_k; ++p) {
    const unsigned holder = __ballot_sync(kAll, lane < a.top_k && place == p);
    sum = __fadd_rn(sum, __shfl_sync(kAll, my_score, __ffs(static_cast<int>(holder)) - 1));
  }
  if (lane >= a.top_k) return;
  float weight = a.normalize ? __fdiv_rn(my_score, __fadd_rn(sum, 1e-6F)) : my_score;
  weight = __fmul_rn(weight, a.scaling_factor);
  a.ids[t * a.ids_stride + place] = my_expert;
  a.weights[t * a.weights_stride + place] = weight;
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads) router_kernel(Route a) {
  await_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (t >= a.tokens) return;
  if (a.sequences != nullptr && a.sequences[t] < 0) {
    if (lane < a.top_k) {
      a.ids[t * a.ids_stride + lane] = kNoExpert;
      a.weights[t * a.weights_stride + lane] = 0;
    }
    return;
  }
  route_token<kPerLane>(a, t, lane);
}

}  // namespace

void router(StreamRef stream, const RouterArgs& a) {
  const std::int64_t experts = a.logits.cols();
  const std::int64_t k = a.ids.cols();
  CHECK(a.ids.rows() == a.logits.rows() && a.weights.rows() == a.logits.rows() &&
            a.weights.cols() == k,
        "logits=[{}, {}] ids=[{}, {}] weights=[{}, {}]", a.logits.rows(), experts, a.ids.rows(), k,
        a.weights.rows(), a.weights.cols());
  CHECK(
      experts >= 1 && experts <= kMaxRouterExperts && k >= 1 && k <= experts && k <= kMaxRouterTopK,
      "E={} K={}", experts, k);
  const Route route{a.logits.data,
                    a.logits.row_stride,
                    a.bias,
                    a.sequences,
                    a.ids.data,
                    a.ids.row_stride,
                    a.weights.data,
                    a.weights.row_stride,
                    static_cast<std::int32_t>(a.logits.rows()),
                    static_cast<std::int32_t>(experts),
                    static_cast<std::int32_t>(k),
                    a.normalize,
                    a.scaling_factor};
  const LaunchShape shape{dim3(static_cast<unsigned>((route.tokens + kWarps - 1) / kWarps)),
                          dim3(kThreads)};
  if (experts <= 32) return launch(router_kernel<1>, shape, stream, route);
  if (experts <= 64) return launch(router_kernel<2>, shape, stream, route);
  if (experts <= 128) return launch(router_kernel<4>, shape, stream, route);
  launch(router_kernel<16>, shape, stream, route);
}

}  // namespace millrace::kernels::cuda
