#include "kernels/cuda/moe_permute.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kPerLane = 4;  // ids in one 16-byte load
constexpr std::int32_t kPerStep = 32 * kPerLane;
constexpr unsigned kAll = 0xffffffffU;

struct Permute {
  const std::int32_t* ids;
  std::int64_t ids_stride;
  bool four_at_once;  // the ids of pairs 4 i .. 4 i + 3 are 16 aligned bytes
  const std::int32_t* slot_of_expert;
  std::int32_t experts;
  std::int32_t slots;
  std::int32_t* offsets;
  std::int32_t* rows;
  std::int32_t* tokens;
  std::int32_t pairs;
  std::int32_t top_k;
};

struct Slots4 {
  std::int32_t slot[kPerLane];
};

// Slots of pairs [pair, pair + 4); pairs that no slot of this lane computes get `slots`, and pairs
// beyond the end slots + 1.
__device__ Slots4 load_slots(const Permute& a, std::int32_t pair) {
  std::int32_t ids[kPerLane] = {-1, -1, -1, -1};
  const auto place = [&](std::int32_t p) {
    return a.ids + std::int64_t{p / a.top_k} * a.ids_stride + p % a.top_k;
  };
  if (a.four_at_once && pair + kPerLane <= a.pairs) {
    const int4 four = *reinterpret_cast<const int4*>(place(pair));
    ids[0] = four.x;
    ids[1] = four.y;
    ids[2] = four.z;
    ids[3] = four.w;
  } else {
    for (int i = 0; i < kPerLane; ++i) {
      if (pair + i < a.pairs) ids[i] = *place(pair + i);
    }
  }
  Slots4 out;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    std::int32_t slot = a.slots;
    if (ids[i] >= 0 && ids[i] < a.experts) {
      slot = a.slot_of_expert == nullptr ? ids[i] : a.slot_of_expert[ids[i]];
      if (slot < 0 || slot >= a.slots) slot = a.slots;
    }
    out.slot[i] = pair + i < a.pairs ? slot : a.slots + 1;
  }
  return out;
}

__device__ std::int32_t warp_sum(std::int32_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// A block for each slot, and one for the pairs of none: nothing passes between blocks, because each
// counts the pairs of lower slots itself. Its warps have consecutive pairs each; a warp counts,
// learns how many the warps before it have, and then hands out rows in order.
__global__ void __launch_bounds__(kThreads) moe_permute_kernel(Permute a) {
  await_previous_kernel();
  __shared__ std::int32_t below_of_warp[kWarps];
  __shared__ std::int32_t mine_of_warp[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto slot = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t steps = (a.pairs + kPerStep - 1) / kPerStep;
  const std::int32_t steps_per_warp = (steps + kWarps - 1) / kWarps;
  const std::int32_t begin = min(warp * steps_per_warp, steps);
  const std::int32_t end = min(begin + steps_per_warp, steps);

  std::int32_t below = 0;
  std::int32_t mine = 0;
  for (std::int32_t step = begin; step < end; ++step) {
    const Slots4 four = load_slots(a, step * kPerStep + lane * kPerLane);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      below += four.slot[i] < slot ? 1 : 0;
      mine += four.slot[i] == slot ? 1 : 0;
    }
  }
  below = warp_sum(below);
  mine = warp_sum(mine);
  if (lane == 0) {
    below_of_warp[warp] = below;
    mine_of_warp[warp] = mine;
  }
  __syncthreads();
  std::int32_t first = 0;  // row of the slot's first pair
  std::int32_t before = 0;
  for (int w = 0; w < kWarps; ++w) {
    first += below_of_warp[w];
    if (w < warp) before += mine_of_warp[w];
  }
  if (threadIdx.x == 0) a.offsets[slot] = first;  // for the block of no slot: the total

  const bool real = slot < a.slots;
  std::int32_t row = first + before;
  const unsigned lower_lanes = (1U << lane) - 1;
  for (std::int32_t step = begin; step < end; ++step) {
    const std::int32_t pair = step * kPerStep + lane * kPerLane;
    const Slots4 four = load_slots(a, pair);
    std::int32_t at = row;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const unsigned votes = __ballot_sync(kAll, four.slot[i] == slot);
      at += __popc(votes & lower_lanes);
      row += __popc(votes);
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (four.slot[i] != slot) continue;
      a.rows[pair + i] = real ? at : -1;
      if (real) a.tokens[at] = (pair + i) / a.top_k;
      ++at;
    }
  }
}

}  // namespace

void moe_permute(StreamRef stream, const MoePermuteArgs& a) {
  const std::int64_t pairs = a.ids.rows() * a.ids.cols();
  CHECK(a.rows.rows() == a.ids.rows() && a.rows.cols() == a.ids.cols() &&
            a.ids.row_stride >= a.ids.cols() && a.rows.row_stride == a.rows.cols() &&
            pairs <= INT32_MAX - kPerStep,
        "ids=[{}, {}] stride {} rows=[{}, {}]", a.ids.rows(), a.ids.cols(), a.ids.row_stride,
        a.rows.rows(), a.rows.cols());
  CHECK(a.experts > 0 && a.slots > 0 && (a.slot_of_expert != nullptr || a.slots == a.experts),
        "E={} slots={}", a.experts, a.slots);
  const bool dense = a.ids.row_stride == a.ids.cols();
  const bool four_at_once =
      dense || (a.ids.cols() % kPerLane == 0 && a.ids.row_stride % kPerLane == 0);
  const Permute permute{a.ids.data,
                        a.ids.row_stride,
                        four_at_once,
                        a.slot_of_expert,
                        a.experts,
                        a.slots,
                        a.offsets,
                        a.rows.data,
                        a.tokens,
                        static_cast<std::int32_t>(pairs),
                        static_cast<std::int32_t>(a.ids.cols())};
  launch(moe_permute_kernel, {dim3(static_cast<unsigned>(a.slots) + 1), dim3(kThreads)}, stream,
         permute);
}

}  // namespace millrace::kernels::cuda
