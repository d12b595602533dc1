#include "kernels/cuda/random_weights.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/random_weights.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float value_of(std::uint32_t bits, float half_step) {
  return __fmul_rn(static_cast<float>(2 * static_cast<int>(bits & 0xffffU) - 65535), half_step);
}

__global__ void __launch_bounds__(kThreads)
    random_weights_kernel(std::uint64_t seed, std::uint64_t first_block, std::int64_t blocks,
                          float half_step, __nv_bfloat16* out) {
  await_previous_kernel();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= blocks) return;
  const std::uint64_t block = first_block + static_cast<std::uint64_t>(i);
  const uint4 words =
      device_philox(make_uint4(static_cast<std::uint32_t>(block),
                               static_cast<std::uint32_t>(block >> 32), 0, kRandomWeightsStream),
                    seed);
  const Vec8 values = {{value_of(words.x, half_step), value_of(words.x >> 16, half_step),
                        value_of(words.y, half_step), value_of(words.y >> 16, half_step),
                        value_of(words.z, half_step), value_of(words.z >> 16, half_step),
                        value_of(words.w, half_step), value_of(words.w >> 16, half_step)}};
  store8(out + i * kVec, values);
}

static_assert(kVec == kRandomWeightsOfBlock);

}  // namespace

void random_weights(StreamRef stream, const RandomWeightsArgs& args) {
  CHECK(args.first % kVec == 0 && args.count % kVec == 0 && args.count >= 0, "first={} count={}",
        args.first, args.count);
  const std::int64_t blocks = args.count / kVec;
  const auto grid = static_cast<unsigned>((blocks + kThreads - 1) / kThreads);
  launch(random_weights_kernel, {dim3(grid), dim3(kThreads)}, stream, args.seed, args.first / kVec,
         blocks, args.half_step, device_cast(args.out));
}

}  // namespace millrace::kernels::cuda
