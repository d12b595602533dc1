// route_tokens of kernels/cuda/moe_exchange.h.
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_exchange.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kRouteThreads = 512;
constexpr int kRouteWarps = kRouteThreads / 32;
constexpr int kMaxTopK = static_cast<int>(kMaxExchangeTopK);
constexpr unsigned kAll = 0xffffffffU;

struct Route {
  ExchangeLayout layout;
  const std::int32_t* ids;
  std::int64_t ids_stride;
  const std::int32_t* lane_of_expert;
  std::int32_t experts;
  std::int32_t lanes;
  std::int32_t bucket;
  std::int32_t* record_tokens;
  std::int32_t capacity;  // of record_tokens
  LaneCounts* counts;
  std::int32_t* rows;
  std::int32_t tokens;
  std::int32_t top_k;
};

// What one token means to the block of a lane.
struct TokenShare {
  std::int32_t records;        // 1 when a copy goes to the lane
  std::int32_t pairs;          // of its experts there
  std::int32_t records_below;  // copies for lanes before this one
  std::int32_t pairs_below;
};

struct TokenLanes {
  std::int32_t lane[kMaxTopK];  // `lanes` for padding
};

__device__ TokenLanes lanes_of_token(const Route& a, std::int32_t t) {
  TokenLanes out;
#pragma unroll
  for (int k = 0; k < kMaxTopK; ++k) {
    out.lane[k] = a.lanes;
    if (k >= a.top_k || t >= a.tokens) continue;
    const std::int32_t id = a.ids[t * a.ids_stride + k];
    if (id >= 0 && id < a.experts) out.lane[k] = a.lane_of_expert[id];
  }
  return out;
}

__device__ TokenShare share_of(const TokenLanes& token, std::int32_t lane) {
  TokenShare share{};
#pragma unroll
  for (int k = 0; k < kMaxTopK; ++k) {
    if (token.lane[k] == lane) {
      share.records = 1;
      ++share.pairs;
    }
    if (token.lane[k] >= lane) continue;
    ++share.pairs_below;
    bool first = true;
#pragma unroll
    for (int j = 0; j < k; ++j) first = first && token.lane[j] != token.lane[k];
    share.records_below += first ? 1 : 0;
  }
  return share;
}

__device__ std::int32_t warp_sum(std::int32_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// The sum over lower lanes of the warp; `total` becomes that of all.
__device__ std::int32_t warp_before(std::int32_t x, int lane, std::int32_t& total) {
  std::int32_t inclusive = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::int32_t other = __shfl_up_sync(kAll, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  total = __shfl_sync(kAll, inclusive, 31);
  return inclusive - x;
}

// Where the records and return rows of a lane's tokens go.
struct Places {
  std::int32_t record;  // of the next token
  std::int32_t pair;
};

__device__ std::int32_t return_row(const Route& a, std::int32_t record, std::int32_t pair, int k) {
  return a.layout == ExchangeLayout::kFixed ? record * a.top_k + k : pair;
}

// Hands out records and rows for tokens [begin, end), which one warp has.
__device__ void place_tokens(const Route& a, std::int32_t to_lane, std::int32_t begin,
                             std::int32_t end, Places next) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (std::int32_t first = begin; first < end; first += 32) {
    const std::int32_t t = first + lane;
    const TokenLanes token = lanes_of_token(a, t < end ? t : a.tokens);
    const TokenShare share = share_of(token, to_lane);
    std::int32_t records = 0;
    std::int32_t pairs = 0;
    const std::int32_t record = next.record + warp_before(share.records, lane, records);
    std::int32_t pair = next.pair + warp_before(share.pairs, lane, pairs);
    next.record += records;
    next.pair += pairs;
    if (share.records == 0) continue;
    a.record_tokens[record] = t;
#pragma unroll
    for (int k = 0; k < kMaxTopK; ++k) {
      if (token.lane[k] != to_lane) continue;
      a.rows[std::int64_t{t} * a.top_k + k] = return_row(a, record, pair++, k);
    }
  }
}

__device__ void mark_padding(const Route& a) {
  for (std::int32_t t = static_cast<std::int32_t>(threadIdx.x); t < a.tokens; t += kRouteThreads) {
    const TokenLanes token = lanes_of_token(a, t);
#pragma unroll
    for (int k = 0; k < kMaxTopK; ++k) {
      if (k < a.top_k && token.lane[k] == a.lanes) a.rows[std::int64_t{t} * a.top_k + k] = -1;
    }
  }
}

__device__ void fill(std::int32_t* to, std::int32_t begin, std::int32_t end, std::int32_t value) {
  for (std::int32_t i = begin + static_cast<std::int32_t>(threadIdx.x); i < end;
       i += kRouteThreads) {
    to[i] = value;
  }
}

// A block for each lane, and one for padding and the end. As in moe_permute.cu every block counts
// what lies before it by itself, and its warps have consecutive tokens.
__global__ void __launch_bounds__(kRouteThreads, 1) route_kernel(Route a) {
  await_previous_kernel();
  __shared__ TokenShare share_of_warp[kRouteWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto to_lane = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t steps = (a.tokens + 31) / 32;
  const std::int32_t per_warp = (steps + kRouteWarps - 1) / kRouteWarps * 32;
  const std::int32_t begin = min(warp * per_warp, a.tokens);
  const std::int32_t end = min(begin + per_warp, a.tokens);

  TokenShare mine{};
  for (std::int32_t t = begin + lane; t < end; t += 32) {
    const TokenShare share = share_of(lanes_of_token(a, t), to_lane);
    mine.records += share.records;
    mine.pairs += share.pairs;
    mine.records_below += share.records_below;
    mine.pairs_below += share.pairs_below;
  }
  mine = {warp_sum(mine.records), warp_sum(mine.pairs), warp_sum(mine.records_below),
          warp_sum(mine.pairs_below)};
  if (lane == 0) share_of_warp[warp] = mine;
  __syncthreads();
  TokenShare all{};
  Places next{0, 0};
  for (int w = 0; w < kRouteWarps; ++w) {
    const TokenShare share = share_of_warp[w];
    if (w < warp) next = {next.record + share.records, next.pair + share.pairs};
    all.records += share.records;
    all.pairs += share.pairs;
    all.records_below += share.records_below;
    all.pairs_below += share.pairs_below;
  }

  const bool fixed = a.layout == ExchangeLayout::kFixed;
  if (to_lane == a.lanes) {
    mark_padding(a);
    if (!fixed) fill(a.record_tokens, all.records_below, a.capacity, kNoRecord);
    return;
  }
  next.record += fixed ? to_lane * a.bucket : all.records_below;
  next.pair += all.pairs_below;
  place_tokens(a, to_lane, begin, end, next);
  if (fixed) {
    fill(a.record_tokens, to_lane * a.bucket + all.records, (to_lane + 1) * a.bucket, kEmptyRecord);
  } else if (threadIdx.x == 0) {
    a.counts[to_lane] = {all.records, all.pairs};
  }
}

// kGather: every token is its own record on every lane.
__global__ void __launch_bounds__(kRouteThreads) route_in_place_kernel(Route a) {
  await_previous_kernel();
  const std::int32_t pair = static_cast<std::int32_t>(blockIdx.x * kRouteThreads + threadIdx.x);
  if (pair >= a.tokens * a.top_k) return;
  const std::int32_t id = a.ids[pair / a.top_k * a.ids_stride + pair % a.top_k];
  a.rows[pair] = id >= 0 && id < a.experts ? pair : -1;
}

}  // namespace

void route_tokens(StreamRef stream, const RouteTokensArgs& a) {
  const std::int64_t tokens = a.ids.rows();
  const std::int64_t top_k = a.ids.cols();
  CHECK(top_k >= 1 && top_k <= kMaxExchangeTopK && a.rows.rows() == tokens &&
            a.rows.cols() == top_k && a.rows.row_stride == top_k && a.experts > 0 && a.lanes > 0,
        "ids=[{}, {}] rows=[{}, {}] E={} lanes={}", tokens, top_k, a.rows.rows(), a.rows.cols(),
        a.experts, a.lanes);
  const bool exact = a.layout == ExchangeLayout::kExact;
  CHECK(exact || tokens <= a.bucket, "T={} bucket={}", tokens, a.bucket);
  CHECK(a.lanes * (exact ? tokens : a.bucket) * top_k <= INT32_MAX, "lanes={} T={} bucket={} K={}",
        a.lanes, tokens, a.bucket, top_k);
  const std::int64_t copies = top_k < a.lanes ? top_k : a.lanes;
  const Route route{a.layout,
                    a.ids.data,
                    a.ids.row_stride,
                    a.lane_of_expert,
                    a.experts,
                    a.lanes,
                    static_cast<std::int32_t>(a.bucket),
                    a.record_tokens,
                    static_cast<std::int32_t>(exact ? tokens * copies : a.lanes * a.bucket),
                    a.counts,
                    a.rows.data,
                    static_cast<std::int32_t>(tokens),
                    static_cast<std::int32_t>(top_k)};
  if (a.layout == ExchangeLayout::kGather) {
    const std::int64_t blocks = (tokens * top_k + kRouteThreads - 1) / kRouteThreads;
    launch(route_in_place_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kRouteThreads)},
           stream, route);
    return;
  }
  launch(route_kernel, {dim3(static_cast<unsigned>(a.lanes) + 1), dim3(kRouteThreads)}, stream,
         route);
}

}  // namespace millrace::kernels::cuda
