// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3" (SC 2011): a keyed bijection of a 128-bit counter. No state, so a
// replayed, preempted or differently batched sequence draws the same numbers (contract C1).
#pragma once

#include <array>
#include <cstdint>

namespace millrace::kernels {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

constexpr PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  // The multipliers and the key increments (golden ratio, sqrt(3) - 1) of the paper, section 4.
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

// The 64 random bits that decide the token at `position` of choice `choice`. The fourth counter
// word is left 0 for other uses of the same seed.
constexpr std::uint64_t draw_bits(std::uint64_t seed, std::uint32_t choice,
                                  std::uint64_t position) {
  const PhiloxCounter out = philox4x32_10(
      {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), choice, 0},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return (std::uint64_t{out[1]} << 32) | out[0];
}

// The same bits as a number strictly between 0 and 1, on a grid of 2^-52 with half a step's offset.
constexpr double unit_interval(std::uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

constexpr double draw_uniform(std::uint64_t seed, std::uint32_t choice, std::uint64_t position) {
  return unit_interval(draw_bits(seed, choice, position));
}

}  // namespace millrace::kernels
