// One GEMM per expert on the device, over rows grouped by expert (kernels/moe_permute.h). Each row
// has the bits that kernels/cuda/gemm.h gives for the same row and weight.
//
// The group sizes are read on the device, so the launch needs no host synchronisation and can be
// captured: the grid is sized for the worst case, every block derives the list of tiles from
// `offsets` and walks its share. Experts without rows cost nothing and their weights are not read.
#pragma once

#include <cstdint>

#include "kernels/cuda/gemm.h"

namespace millrace::kernels::cuda {

inline constexpr int kMaxGroupedExperts = 256;

// All pointers are device memory.
struct GroupedGemmArgs {
  // [rows, K]. Grouped already, or indirect through x_rows.
  MatrixView<const BFloat16> x;
  const std::int32_t* x_rows = nullptr;   // [max_rows] or null: grouped row r reads x row x_rows[r]
  const std::int32_t* offsets = nullptr;  // [experts + 1]: rows of e are [offsets[e], offsets[e+1])
  std::int32_t experts = 0;               // groups, at most kMaxGroupedExperts
  std::int64_t max_rows = 0;              // offsets[experts] never exceeds it
  // The weight of group 0; the others follow without gaps, w.bytes() apart.
  PackedWeight w;
  GemmOutput y;  // [>= offsets[experts], N]; other rows stay untouched
  GemmWorkspace workspace;
  GemmTuning tuning;
};

GemmWorkspaceSize grouped_gemm_workspace(WeightFormat format, std::int64_t max_rows,
                                         std::int32_t experts, std::int64_t rows,
                                         std::int64_t cols);

// Rules of shapes and alignment as in gemm().
void grouped_gemm(StreamRef stream, const GroupedGemmArgs& args);

}  // namespace millrace::kernels::cuda
