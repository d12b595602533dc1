// The values of kernels/random_weights.h, written by a device: the same bits.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"

namespace millrace::kernels::cuda {

struct RandomWeightsArgs {
  std::uint64_t seed = 0;
  std::uint64_t first = 0;  // index of the first value; a multiple of 8
  std::int64_t count = 0;   // a multiple of 8
  float half_step = 0;
  BFloat16* out = nullptr;  // [count] in device memory, 16-byte aligned
};
void random_weights(StreamRef stream, const RandomWeightsArgs& args);

}  // namespace millrace::kernels::cuda
