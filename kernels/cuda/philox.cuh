// kernels/philox.h, whose std::array device code cannot use.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {

__device__ __forceinline__ uint4 device_philox(uint4 counter, std::uint64_t seed) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter.x;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter.z;
    counter = make_uint4(static_cast<std::uint32_t>(product1 >> 32) ^ counter.y ^ k0,
                         static_cast<std::uint32_t>(product1),
                         static_cast<std::uint32_t>(product0 >> 32) ^ counter.w ^ k1,
                         static_cast<std::uint32_t>(product0));
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return counter;
}

__device__ inline std::uint64_t device_draw_bits(std::uint64_t seed, std::uint32_t choice,
                                                 std::uint64_t position) {
  const uint4 out = device_philox(make_uint4(static_cast<std::uint32_t>(position),
                                             static_cast<std::uint32_t>(position >> 32), choice, 0),
                                  seed);
  return (std::uint64_t{out.y} << 32) | out.x;
}

}  // namespace millrace::kernels::cuda
