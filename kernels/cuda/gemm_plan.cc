#include "kernels/cuda/gemm_plan.h"

#include <algorithm>
#include <iterator>

#include "config/check.h"

namespace millrace::kernels::cuda {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int rows_of_tile(int tile_tokens, GemmSpread spread) {
  if (spread == GemmSpread::kNarrow) return 16;
  return tile_tokens <= 64 ? kGemmTileRows : 2 * kGemmTileRows;
}

// Tiles in the worst case: every group but the full ones ends in a part of a tile.
std::int64_t most_tiles(const GemmShape& shape, int tile_tokens,
                        GemmSpread spread = GemmSpread::kWhole) {
  const std::int64_t row_tiles = ceil_div(shape.rows, rows_of_tile(tile_tokens, spread));
  if (shape.groups == 1) return ceil_div(shape.tokens, tile_tokens) * row_tiles;
  const std::int64_t parts = std::min(shape.groups, shape.tokens);
  return ((shape.tokens - parts) / tile_tokens + parts) * row_tiles;
}

int smallest_tile(std::int64_t tokens) {
  for (const int tile : kGemmTileTokens) {
    if (tile >= tokens) return tile;
  }
  return *std::rbegin(kGemmTileTokens);
}

// One group: the smallest tile that holds all tokens reads the weights once; beyond it the largest
// that still gives every multiprocessor a tile, since 128 x 128 values do the most arithmetic for a
// byte of shared memory. Many groups: a tile for half as many tokens again as the mean, so that
// most groups are one tile; a second one reads the weights again, from L2.
int choose_tile(const GemmShape& shape, int sm_count) {
  if (shape.groups == 1) {
    if (shape.tokens <= 64) return smallest_tile(shape.tokens);
    for (const int tile : {128, 96}) {
      if (most_tiles(shape, tile) >= sm_count) return tile;
    }
    return 64;
  }
  const std::int64_t parts = std::max<std::int64_t>(1, std::min(shape.groups, shape.tokens));
  return smallest_tile(ceil_div(3 * shape.tokens, 2 * parts));
}

// Blocks of one wave share the bandwidth, so tiles need not divide evenly; but each multiprocessor
// needs some. Narrow tiles make four of one and add chunks without the way through L2 and back (two
// round trips, of the order of a small product's whole time); their price is that x is read four
// times as often, a byte of x to two of weights with 8 tokens and one to one with 16.
GemmSpread choose_spread(const GemmShape& shape, int tile_tokens, int sm_count) {
  const std::int64_t tiles = most_tiles(shape, tile_tokens);
  if (shape.cols <= kGemmChunk) return GemmSpread::kWhole;
  if (tile_tokens == 8 && tiles < 4LL * sm_count) return GemmSpread::kNarrow;
  if (tile_tokens == 16 && tiles < sm_count) return GemmSpread::kNarrow;
  return tiles < sm_count ? GemmSpread::kSplit : GemmSpread::kWhole;
}

}  // namespace

GemmPlan plan_gemm(const GemmShape& shape, int sm_count, const GemmTuning& tuning) {
  GemmPlan plan;
  plan.tile_tokens = tuning.tile_tokens != 0 ? tuning.tile_tokens : choose_tile(shape, sm_count);
  CHECK(std::count(std::begin(kGemmTileTokens), std::end(kGemmTileTokens), plan.tile_tokens) == 1,
        "no tile of {} tokens", plan.tile_tokens);
  plan.spread = tuning.spread.value_or(choose_spread(shape, plan.tile_tokens, sm_count));
  CHECK(plan.spread != GemmSpread::kNarrow || plan.tile_tokens <= 16, "a narrow tile of {} tokens",
        plan.tile_tokens);
  plan.tile_rows = rows_of_tile(plan.tile_tokens, plan.spread);
  plan.row_tiles = ceil_div(shape.rows, plan.tile_rows);
  plan.tiles = most_tiles(shape, plan.tile_tokens, plan.spread);
  plan.chunks = ceil_div(shape.cols, kGemmChunk);
  if (plan.spread == GemmSpread::kSplit) {
    plan.partial_bytes = plan.units() * plan.tile_rows * plan.tile_tokens * std::int64_t{4};
    plan.ticket_count = plan.tiles;
  }
  return plan;
}

GemmWorkspaceSize plan_workspace(GemmShape shape, int sm_count) {
  GemmWorkspaceSize most;
  const std::int64_t max_tokens = shape.tokens;
  // Above this many tokens no plan splits: there is a tile for every multiprocessor.
  const std::int64_t last = std::min<std::int64_t>(max_tokens, 128LL * sm_count);
  for (std::int64_t t = 1; t <= last; ++t) {
    shape.tokens = t;
    const GemmPlan plan = plan_gemm(shape, sm_count, {});
    most = max_workspace(most, {plan.partial_bytes, plan.ticket_count});
  }
  return most;
}

GemmWorkspaceSize max_workspace(GemmWorkspaceSize a, GemmWorkspaceSize b) {
  return {std::max(a.partial_bytes, b.partial_bytes), std::max(a.ticket_count, b.ticket_count)};
}

GemmWorkspaceSize gemm_workspace(WeightFormat format, std::int64_t max_tokens, std::int64_t rows,
                                 std::int64_t cols) {
  return plan_workspace({format, max_tokens, 1, rows, cols}, current_sm_count());
}

GemmPath gemm_path() { return current_cc() == 90 ? GemmPath::kWgmma : GemmPath::kMma; }

}  // namespace millrace::kernels::cuda
