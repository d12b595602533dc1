// Values of weights where only the shape of a model matters: value i is a function of (seed, i), so
// that any part of them can be made anywhere, by any number of threads, and on devices
// (kernels/cuda/random_weights.h) with the same bits.
//
// Eight values come from one block of Philox (kernels/philox.h), of counter {i / 8, 0, 1}: value i
// is (2 u - 65535) * half_step rounded to bf16, u being 16 bits of the block, low halves of its
// words first. Its mean is 0; the deviation is as random_weight_half_step chooses.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "kernels/dtype.h"
#include "kernels/philox.h"

namespace millrace::kernels {

inline constexpr int kRandomWeightsOfBlock = 8;

// For matrices of `cols` columns: deviation 1 / sqrt(cols), so that a product with values of
// deviation 1 has deviation 1 again.
inline float random_weight_half_step(std::int64_t cols) {
  return static_cast<float>(std::sqrt(12.0 / static_cast<double>(cols)) / 131072.0);
}

// The fourth word of the counter: draws of tokens have 0 there.
inline constexpr std::uint32_t kRandomWeightsStream = 1;

// Values first, first + 1, ... as bf16. `first` and the size of `out` are multiples of 8.
inline void random_weights(std::uint64_t seed, std::uint64_t first, float half_step,
                           std::span<std::uint16_t> out) {
  const PhiloxKey key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (std::size_t i = 0; i < out.size(); i += kRandomWeightsOfBlock) {
    const std::uint64_t block = (first + i) / kRandomWeightsOfBlock;
    const PhiloxCounter words =
        philox4x32_10({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                       0, kRandomWeightsStream},
                      key);
    for (std::size_t j = 0; j < kRandomWeightsOfBlock; ++j) {
      const auto u = static_cast<std::int32_t>(words[j / 2] >> (16 * (j % 2)) & 0xffffU);
      out[i + j] = f32_to_bf16(static_cast<float>(2 * u - 65535) * half_step);
    }
  }
}

}  // namespace millrace::kernels
