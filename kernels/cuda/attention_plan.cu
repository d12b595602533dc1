// One block turns the tokens of a step into lists of work, once for all layers.
#include "kernels/cuda/attention_plan.cuh"

#include <bit>

#include "kernels/cuda/check.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

struct PlanParams {
  AttentionLists lists;
  const std::int32_t* sequences;
  const std::int32_t* positions;
  int rows;
  int group;           // H / G
  int kv_heads;        // G
  int prefill_tokens;  // of a tile
  int max_decoded_tokens;
  int split_units;
};

__device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Sum of the values of lower threads; `total` gets the sum of all.
__device__ int exclusive_scan(int value, int* warp_sums, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffU, sum, step);
    if (lane >= step) sum += below;
  }
  __syncthreads();  // the last scan's sums were read
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += warp_sums[w];
  }
  return before + sum - value;
}

__device__ bool padded(const PlanParams& p, int t) {
  return p.sequences[t] < 0 || p.positions[t] < 0;
}

// Whether row t goes on where row t - 1 ends.
__device__ bool begins_segment(const PlanParams& p, int t) {
  if (t == 0) return true;
  if (padded(p, t) || padded(p, t - 1)) return padded(p, t) != padded(p, t - 1);
  return p.sequences[t] != p.sequences[t - 1] || p.positions[t] != p.positions[t - 1] + 1;
}

__device__ int find_segments(const PlanParams& p, int* scratch) {
  int count = 0;
  for (int base = 0; base < p.rows; base += kThreads) {
    const int t = base + static_cast<int>(threadIdx.x);
    const bool begins = t < p.rows && begins_segment(p, t);
    int total = 0;
    const int rank = exclusive_scan(begins ? 1 : 0, scratch, total);
    if (begins) p.lists.starts[count + rank] = t;
    count += total;
  }
  if (threadIdx.x == 0) p.lists.starts[count] = p.rows;
  __syncthreads();
  return count;
}

struct Segment {
  int row = 0;
  int tokens = 0;
  int position = 0;
  int sequence = -1;
  // Row groups (decode), tiles (prefill) or stretches (padded rows), and tokens in each.
  int parts = 0;
  int part_tokens = 1;
  bool prefill = false;

  __device__ int tokens_of(int part) const { return min(part_tokens, tokens - part * part_tokens); }
  __device__ int position_of(int part) const { return position + part * part_tokens; }
  __device__ int ranges_of(int part) const {
    return (position_of(part) + tokens_of(part) - 1) / kAttentionRange + 1;
  }
};

__device__ Segment load_segment(const PlanParams& p, int s, int count) {
  Segment g;
  if (s >= count) return g;
  g.row = p.lists.starts[s];
  g.tokens = p.lists.starts[s + 1] - g.row;
  if (padded(p, g.row)) {
    g.part_tokens = kZeroTokens;
  } else {
    g.position = p.positions[g.row];
    g.sequence = p.sequences[g.row];
    g.prefill = g.tokens > p.max_decoded_tokens;
    g.part_tokens = g.prefill ? p.prefill_tokens : kDecodeRows / p.group;
  }
  g.parts = ceil_div(g.tokens, g.part_tokens);
  return g;
}

// Units that cutting the segment at every range takes; 0 where there is nothing to cut.
__device__ int units_wanted(const Segment& g) {
  if (g.sequence < 0 || g.prefill || g.ranges_of(g.parts - 1) == 1) return 0;
  int units = 0;
  for (int part = 0; part < g.parts; ++part) units += g.tokens_of(part) * g.ranges_of(part);
  return units;
}

__device__ int decode_items(const Segment& g, bool split) {
  if (g.prefill) return 0;
  if (!split) return g.parts;
  int items = 0;
  for (int part = 0; part < g.parts; ++part) items += g.ranges_of(part);
  return items;
}

__device__ AttentionItem item_of(const Segment& g, int part) {
  return {g.row + part * g.part_tokens,
          g.tokens_of(part),
          g.position_of(part),
          g.sequence,
          kAllRanges,
          g.sequence < 0 ? 0 : g.ranges_of(part),
          0,
          0};
}

__device__ void write_decode(const PlanParams& p, const Segment& g, bool split, int at, int unit) {
  for (int part = 0; part < g.parts; ++part) {
    AttentionItem item = item_of(g, part);
    if (!split) {
      p.lists.decode[at++] = item;
      continue;
    }
    item.unit = unit;
    item.ticket = at;
    for (int i = 0; i < p.kv_heads; ++i) p.lists.tickets[at * p.kv_heads + i] = 0;
    for (item.range = 0; item.range < item.ranges; ++item.range) p.lists.decode[at++] = item;
    unit += item.ranges * item.tokens;
  }
}

// Tiles of a chunk from its end: the longest first.
__device__ void write_prefill(const PlanParams& p, const Segment& g, int at) {
  for (int part = g.parts - 1; part >= 0; --part) p.lists.prefill[at++] = item_of(g, part);
}

__global__ void __launch_bounds__(kThreads) attention_plan_kernel(PlanParams p) {
  await_previous_kernel();
  __shared__ int scratch[kWarps];
  const int segments = find_segments(p, scratch);
  int units = 0;
  AttentionCounts counts = {0, 0};
  for (int base = 0; base < segments; base += kThreads) {
    const Segment g = load_segment(p, base + static_cast<int>(threadIdx.x), segments);
    int total = 0;
    const int wanted = units_wanted(g);
    const int unit = units + exclusive_scan(wanted, scratch, total);
    units += total;
    const bool split = wanted > 0 && unit + wanted <= p.split_units;
    const int decode = decode_items(g, split);
    const int decode_at = counts.decode + exclusive_scan(decode, scratch, total);
    counts.decode += total;
    const int prefill = g.prefill ? g.parts : 0;
    const int prefill_at = counts.prefill + exclusive_scan(prefill, scratch, total);
    counts.prefill += total;
    if (decode > 0) write_decode(p, g, split, decode_at, unit);
    if (prefill > 0) write_prefill(p, g, prefill_at);
  }
  if (threadIdx.x == 0) *p.lists.counts = counts;
}

}  // namespace

bool attention_supports(const AttentionShape& s) {
  const bool dim = s.head_dim == 32 || s.head_dim == 64 || s.head_dim == 128;
  if (!dim || s.kv_heads <= 0 || s.heads <= 0 || s.heads % s.kv_heads != 0) return false;
  const std::int32_t group = s.heads / s.kv_heads;
  return group <= 8 && std::has_single_bit(static_cast<unsigned>(group));
}

std::int32_t max_decode_items(const AttentionWorkspace& w, std::int32_t rows) {
  return w.split_units + rows;
}

std::int32_t max_prefill_items(const AttentionWorkspace& w, std::int32_t rows) {
  const std::int32_t group = w.shape.heads / w.shape.kv_heads;
  const std::int32_t tile_tokens = prefill_rows(w.shape.head_dim) / group;
  // Whole tiles, and one more for the end of every segment that is long enough.
  return rows / tile_tokens + rows / (kMaxDecodedRows / group + 1) + 1;
}

AttentionLists attention_lists(const AttentionWorkspace& w) {
  AttentionLists lists{};
  std::size_t at = 0;
  const auto place = [&](auto*& pointer, std::size_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(w.data + at);
    at += (count * sizeof(*pointer) + 255) / 256 * 256;
  };
  const auto decode = static_cast<std::size_t>(max_decode_items(w, w.max_rows));
  const auto heads = static_cast<std::size_t>(w.shape.heads);
  const std::size_t unit_rows = static_cast<std::size_t>(w.split_units) * heads;
  place(lists.counts, 1);
  place(lists.starts, static_cast<std::size_t>(w.max_rows) + 1);
  place(lists.decode, decode);
  place(lists.prefill, static_cast<std::size_t>(max_prefill_items(w, w.max_rows)));
  place(lists.tickets, decode * static_cast<std::size_t>(w.shape.kv_heads));
  place(lists.partials, unit_rows * static_cast<std::size_t>(partial_floats(w.shape.head_dim)));
  lists.bytes = at;
  return lists;
}

std::size_t attention_workspace_bytes(const AttentionWorkspace& w) {
  check_workspace(w, {});
  return attention_lists(w).bytes;
}

void check_workspace(const AttentionWorkspace& w, const AttentionTokens& tokens) {
  CHECK(attention_supports(w.shape),
        "attention needs head_dim 32, 64 or 128 and H / G in 1, 2, 4, 8: H={} G={} head_dim={}",
        w.shape.heads, w.shape.kv_heads, w.shape.head_dim);
  CHECK(w.max_rows >= 0 && w.split_units >= 0 && tokens.rows >= 0 && tokens.rows <= w.max_rows,
        "rows={} max_rows={} split_units={}", tokens.rows, w.max_rows, w.split_units);
}

void attention_plan(StreamRef stream, const AttentionWorkspace& w, const AttentionTokens& tokens) {
  check_workspace(w, tokens);
  CHECK(w.data != nullptr, "no workspace");
  const int group = w.shape.heads / w.shape.kv_heads;
  const int max_decoded =
      tokens.batch == AttentionBatch::kDecode ? tokens.rows : kMaxDecodedRows / group;
  const PlanParams params{attention_lists(w),
                          tokens.sequences,
                          tokens.positions,
                          tokens.rows,
                          group,
                          w.shape.kv_heads,
                          prefill_rows(w.shape.head_dim) / group,
                          max_decoded,
                          w.split_units};
  launch(attention_plan_kernel, {dim3(1), dim3(kThreads)}, stream, params);
}

}  // namespace millrace::kernels::cuda
