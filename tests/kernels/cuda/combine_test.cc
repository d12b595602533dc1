#include "kernels/cuda/combine.h"

#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

struct Combine {
  std::int64_t d = 0, k = 0, outputs = 0;
  std::vector<float> y, hidden, weights;
  std::vector<std::int32_t> rows;
};

Combine make_combine(std::int64_t tokens, std::int64_t d, std::int64_t k, std::uint32_t seed) {
  Combine c{d, k, tokens * k, {}, {}, {}, {}};
  c.y = random_bf16(c.outputs * d, seed);
  c.hidden = random_values(tokens * d, seed + 1, 4);
  c.weights = random_values(tokens * k, seed + 2);
  std::mt19937 rng(seed);
  for (std::int64_t i = 0; i < tokens * k; ++i) {
    c.rows.push_back(static_cast<std::int32_t>(rng() % static_cast<unsigned>(c.outputs)));
    if (rng() % 5 == 0) c.rows.back() = -1;
  }
  return c;
}

std::vector<float> run(const Combine& c) {
  const auto tokens = static_cast<std::int64_t>(c.hidden.size()) / c.d;
  const DeviceArray<BFloat16> y(to_bf16(c.y));
  const DeviceArray<std::int32_t> rows(c.rows);
  const DeviceArray<float> weights(c.weights);
  const DeviceArray<float> hidden(c.hidden);
  combine(default_stream(), {.y = matrix<const BFloat16>(y.data(), c.outputs, c.d),
                             .rows = matrix<const std::int32_t>(rows.data(), tokens, c.k),
                             .weights = matrix<const float>(weights.data(), tokens, c.k),
                             .hidden = matrix(hidden.data(), tokens, c.d)});
  return hidden.read();
}

// The header's definition to the bit: fma in ascending k, then one addition.
TEST(CudaCombineTest, IsTheDefinition) {
  for (const std::int64_t k : {1, 4, 8, 64}) {
    for (const std::int64_t d : {8, 256, 2048, 4104}) {
      const Combine c = make_combine(5, d, k, static_cast<std::uint32_t>(d + k));
      std::vector<float> want = c.hidden;
      for (std::int64_t t = 0; t < 5; ++t) {
        for (std::int64_t i = 0; i < d; ++i) {
          float sum = 0;
          bool any = false;
          for (std::int64_t j = 0; j < k; ++j) {
            const std::int32_t row = c.rows[static_cast<std::size_t>(t * k + j)];
            if (row < 0) continue;
            any = true;
            sum = std::fma(c.weights[static_cast<std::size_t>(t * k + j)],
                           c.y[static_cast<std::size_t>(row * d + i)], sum);
          }
          if (any) want[static_cast<std::size_t>(t * d + i)] += sum;
        }
      }
      expect_same_bits(run(c), want, "K=" + std::to_string(k) + " D=" + std::to_string(d));
    }
  }
}

TEST(CudaCombineTest, PaddedRowsAreNotTouchedAndNanStaysInItsRow) {
  Combine c = make_combine(3, 64, 4, 9);
  c.hidden[64] = -0.0F;  // adding even +0 would show
  c.rows = {0, 1, 2, 3, -1, -1, -1, -1, 4, 5, -1, 6};
  const std::vector<float> clean = run(c);
  for (std::int64_t i = 0; i < 64; ++i) c.y[static_cast<std::size_t>(2 * 64 + i)] = kNan;
  const std::vector<float> got = run(c);
  EXPECT_TRUE(std::isnan(got[0]));
  expect_same_bits(rows_of(got, 1, 1, 64), rows_of(c.hidden, 1, 1, 64), "padding");
  expect_same_bits(rows_of(got, 2, 1, 64), rows_of(clean, 2, 1, 64), "neighbour of NaN");
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
