// From a plan's numbers to the tile type of a kernel.
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_tile.cuh"

namespace millrace::kernels::cuda {

// Calls start.template run<GemmTile<...>>() with the plan's tile.
template <WeightFormat Format, class Start>
void with_tile(const GemmPlan& plan, const Start& start) {
  const bool narrow = plan.spread == GemmSpread::kNarrow;
  switch (plan.tile_tokens) {
    case 8:
      return narrow ? start.template run<GemmTile<Format, 16, 8>>()
                    : start.template run<GemmTile<Format, 64, 8>>();
    case 16:
      return narrow ? start.template run<GemmTile<Format, 16, 16>>()
                    : start.template run<GemmTile<Format, 64, 16>>();
    case 32:
      return start.template run<GemmTile<Format, 64, 32>>();
    case 64:
      return start.template run<GemmTile<Format, 64, 64>>();
    case 96:
      return start.template run<GemmTile<Format, 128, 96>>();
    case 128:
      return start.template run<GemmTile<Format, 128, 128>>();
    default:
      CHECK(false, "no tile of {} tokens", plan.tile_tokens);
  }
}

template <class Start>
void with_tile(WeightFormat format, const GemmPlan& plan, const Start& start) {
  if (format == WeightFormat::kBf16) {
    with_tile<WeightFormat::kBf16>(plan, start);
  } else {
    with_tile<WeightFormat::kFp8E4M3>(plan, start);
  }
}

// A block for each place on the device, but none without work.
template <class C>
LaunchShape persistent_shape(const GemmPlan& plan) {
  const std::int64_t places = std::int64_t{C::BlocksPerSm} * current_sm_count();
  const auto blocks = static_cast<unsigned>(plan.units() < places ? plan.units() : places);
  return {dim3(blocks), dim3(C::Threads), std::size_t{C::SmemBytes}, C::BlocksPerSm};
}

}  // namespace millrace::kernels::cuda
