#include "kernels/random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace millrace::kernels {
namespace {

std::vector<float> values(std::uint64_t seed, std::uint64_t first, std::size_t count,
                          std::int64_t cols) {
  std::vector<std::uint16_t> bits(count);
  random_weights(seed, first, random_weight_half_step(cols), bits);
  std::vector<float> out;
  for (const std::uint16_t b : bits) out.push_back(bf16_to_f32(b));
  return out;
}

TEST(RandomWeights, APartHasTheValuesOfTheWhole) {
  const std::vector<float> whole = values(3, 0, 4096, 64);
  const std::vector<float> part = values(3, 1024, 512, 64);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 1024));
  EXPECT_NE(values(4, 0, 4096, 64), whole);
}

TEST(RandomWeights, KeepTheSizeOfWhatTheyMultiply) {
  constexpr std::size_t kCount = 1 << 18;
  constexpr std::int64_t kCols = 2048;
  double sum = 0;
  double squares = 0;
  double neighbours = 0;
  const std::vector<float> v = values(0, 0, kCount, kCols);
  for (std::size_t i = 0; i < v.size(); ++i) {
    sum += v[i];
    squares += static_cast<double>(v[i]) * v[i];
    neighbours += i > 0 ? static_cast<double>(v[i]) * v[i - 1] : 0;
  }
  // Deviations of these sums: 1 of sqrt(n), for a uniform value's square sqrt(4/5) of the mean.
  const double n = kCount;
  EXPECT_NEAR(sum * std::sqrt(kCols / n), 0, 5);
  EXPECT_NEAR(squares * kCols / n, 1, 5 * std::sqrt(0.8 / n) + 0x1p-8);
  EXPECT_NEAR(neighbours * kCols / std::sqrt(n), 0, 5);
}

}  // namespace
}  // namespace millrace::kernels
