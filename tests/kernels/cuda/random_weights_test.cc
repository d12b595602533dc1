#include "kernels/cuda/random_weights.h"

#include "kernels/random_weights.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda {
namespace {

using testing::DeviceArray;
using testing::kBf16Nan;

TEST(CudaRandomWeights, HasTheBitsOfTheHost) {
  for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{8} * 12'345'678'901}) {
    constexpr std::int64_t kCount = 8 * 1027;
    const float half_step = random_weight_half_step(2048);
    const DeviceArray<BFloat16> out(kCount + 8, kBf16Nan);
    random_weights(testing::default_stream(), {17, first, kCount, half_step, out.data()});
    std::vector<std::uint16_t> expected(kCount);
    kernels::random_weights(17, first, half_step, expected);
    const std::vector<BFloat16> got = out.read();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(got[i].bits, expected[i]) << "value " << i << " from " << first;
    }
    for (std::size_t i = expected.size(); i < got.size(); ++i) EXPECT_EQ(got[i], kBf16Nan);
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda
