// Which tiles a GEMM is cut into and whether their sums are split over blocks: host arithmetic
// shared by gemm, grouped_gemm and the sizes of their workspaces. Nothing here changes a result.
#pragma once

#include <cstdint>

#include "kernels/cuda/gemm.h"

namespace millrace::kernels::cuda {

struct GemmShape {
  WeightFormat format = WeightFormat::kBf16;
  std::int64_t tokens = 0;  // T, or the most rows of all groups together
  std::int64_t groups = 1;  // experts
  std::int64_t rows = 0;    // N
  std::int64_t cols = 0;    // K
};

struct GemmPlan {
  int tile_tokens = 0;
  GemmSpread spread = GemmSpread::kWhole;
  int tile_rows = 0;           // 64, 128 for more than 64 tokens, 16 when narrow
  std::int64_t row_tiles = 0;  // ceil(N / tile_rows)
  std::int64_t tiles = 0;      // of rows and tokens together, at most
  std::int64_t chunks = 0;     // partial sums of one dot product
  std::int64_t partial_bytes = 0;
  std::int64_t ticket_count = 0;

  // Pieces of work, at most.
  std::int64_t units() const { return spread == GemmSpread::kSplit ? tiles * chunks : tiles; }
};

GemmPlan plan_gemm(const GemmShape& shape, int sm_count, const GemmTuning& tuning);

// The most that plans of up to shape.tokens tokens need.
GemmWorkspaceSize plan_workspace(GemmShape shape, int sm_count);

}  // namespace millrace::kernels::cuda
