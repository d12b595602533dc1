// Kernels that break the rules are found out, with the place named, and leave the emulator usable.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <thread>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/runtime.h"
#include "tests/cuda_emulator/control.h"
#include "tests/kernels/cuda/device_memory.h"

namespace millrace::kernels::cuda {
namespace {

using cuda_emulator::KernelError;
using testing::HasSubstr;

class Misuse : public testing::Test {
 protected:
  void TearDown() override { cuda_emulator::reset(); }

  void expect_error(const std::function<void()>& launch_it, const std::string& words) {
    try {
      launch_it();
      FAIL() << "no error; wanted: " << words;
    } catch (const KernelError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words));
      EXPECT_THAT(e.what(), HasSubstr("misuse_test.cu:")) << "the launch's place";
    }
  }

  Stream stream_;
};

// ---- barriers and shuffles --------------------------------------------------------------------

__global__ void half_at_barrier(int* out, bool last_goes_on) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (last_goes_on) {
    __shared__ int never;
    __syncwarp();
    named_barrier_sync(3, 64);  // only 32 come
    never = 1;
    out[0] = never;
  }
  if (threadIdx.x == 0) out[1] = 2;
}

TEST_F(Misuse, DeadlockNamesWhoWaitsWhere) {
  auto out = poisoned<int>(stream_, 2);
  const auto launch_it = [&] { launch(half_at_barrier, {1, 64}, stream_, out.as<int>(), true); };
  expect_error(launch_it, "deadlock: 0 of 64 threads have ended, 32 wait for __syncthreads at");
  expect_error(launch_it, "32 wait for a named barrier at misuse_test.cu:");
  // Threads that ended are not waited for, as on the device.
  launch(half_at_barrier, {1, 64}, stream_, out.as<int>(), false);
  EXPECT_EQ(download<int>(stream_, out)[1], 2);
}

__global__ void two_barriers(int* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    out[0] = 1;
    __syncthreads();
  }
}

__global__ void lane_leaves_itself_out() { __shfl_sync(0xfffffffeU, 1, 1); }
__global__ void absent_lane(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffU, 1, 20);
}
__global__ void missing_lane(int* out) {
  if (threadIdx.x != 5) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffU, 1, 1);
  } else {
    __syncthreads();
  }
}
__global__ void different_operations(int* out) {
  if (threadIdx.x < 16) {
    out[0] = __shfl_xor_sync(0xffffffffU, 1, 1);
  } else {
    out[0] = __any_sync(0xffffffffU, 1);
  }
}

TEST_F(Misuse, DivergedCollectives) {
  auto out = poisoned<int>(stream_, 64);
  int* p = out.as<int>();
  expect_error([&] { launch(two_barriers, {1, 64}, stream_, p); }, "is at the __syncthreads of");
  expect_error(
      [&] {
        launch(lane_leaves_itself_out, {1, 32}, stream_);
      },
      "leaves out its own lane");
  expect_error([&] { launch(absent_lane, {1, 32}, stream_, p); }, "which takes no part");
  expect_error([&] { launch(missing_lane, {1, 32}, stream_, p); }, "31 wait for __shfl_xor_sync");
  expect_error(
      [&] {
        launch(different_operations, {1, 32}, stream_, p);
      },
      "while others of its warp");
}

__global__ void traps(int limit) {
  if (static_cast<int>(threadIdx.x) >= limit) __trap();
  __syncthreads();
}

TEST_F(Misuse, TrapAndRecovery) {
  expect_error([&] { launch(traps, {2, 96}, stream_, 70); }, "__trap() at line");
  for (int i = 0; i < 100; ++i) {
    EXPECT_THROW(launch(traps, {2, 96}, stream_, i % 96), KernelError);
    launch(traps, {2, 96}, stream_, 96);
  }
}

__global__ void waits(bool all) {
  if (all || threadIdx.x != 3) await_previous_kernel();
}

TEST_F(Misuse, EveryThreadWaitsForTheKernelInFront) {
  const Stream overlapping(/*priority=*/0, /*overlap=*/true);
  launch(waits, {2, 32}, overlapping, true);
  expect_error([&] { launch(waits, {2, 32}, overlapping, false); },
               "62 of 64 threads called await_previous_kernel()");
  launch(waits, {2, 32}, stream_, false);
}

// ---- memory of a block ------------------------------------------------------------------------

__global__ void read_uninitialised(float* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  auto* values = reinterpret_cast<float*>(smem);
  out[blockIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = 1.0F;  // the next block must not see it
}
__global__ void write_beyond(int bytes) {
  MILLRACE_DYNAMIC_SMEM(smem);
  smem[bytes] = 1;
}

TEST_F(Misuse, DynamicSharedMemoryIsPoisonedAndGuarded) {
  auto out = upload(stream_, std::vector<float>{0, 0});
  launch(read_uninitialised, {2, 1, 64}, stream_, out.as<float>());
  for (const float v : download<float>(stream_, out)) EXPECT_TRUE(std::isnan(v));
  expect_error([&] { launch(write_beyond, {1, 1, 64}, stream_, 64); }, "wrote beyond its 64 bytes");
}

TEST_F(Misuse, DeviceMemoryIsPoisoned) {
  const DeviceBuffer fresh(8);
  EXPECT_TRUE(std::isnan(download<float>(stream_, fresh)[0]));
}

// ---- background copies ------------------------------------------------------------------------

__global__ void no_wait(const uint4* in, uint4* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  cp_async_16(smem, in);
  cp_async_commit();
  *out = *reinterpret_cast<uint4*>(smem);
  cp_async_wait<0>();
  out[1] = *reinterpret_cast<uint4*>(smem);
}
__global__ void no_commit(const uint4* in, uint4* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  cp_async_16(smem, in);
  cp_async_wait<0>();
  *out = *reinterpret_cast<uint4*>(smem);
}

TEST_F(Misuse, CpAsyncIsStaleUntilTheWait) {
  const auto in = upload(stream_, std::vector<std::uint32_t>{1, 2, 3, 4});
  auto out = upload(stream_, std::vector<std::uint32_t>(8));
  launch(no_wait, {1, 1, 16}, stream_, in.as<uint4>(), out.as<uint4>());
  auto got = download<std::uint32_t>(stream_, out);
  EXPECT_EQ(got[0], 0xffffffffU);
  EXPECT_EQ(got[4], 1U);
  launch(no_commit, {1, 1, 16}, stream_, in.as<uint4>(), out.as<uint4>());
  EXPECT_EQ(download<std::uint32_t>(stream_, out)[0], 0xffffffffU);
}

enum class Bulk {
  kNoWait,
  kNoBarrier,
  kTooFew,
  kOverwritten,
  kTooManyArrivals,
  kMisaligned,
  kStale
};

__global__ void bulk_misuse(Bulk kind, const unsigned char* in, unsigned char* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  __shared__ std::uint64_t bar;
  if (threadIdx.x == 0) {
    if (kind != Bulk::kNoBarrier) mbarrier_init(&bar, 1);
    if (kind == Bulk::kOverwritten) bar = 0;
    if (kind != Bulk::kNoBarrier) mbarrier_arrive_expect_tx(&bar, kind == Bulk::kTooFew ? 64 : 32);
    if (kind == Bulk::kTooManyArrivals) mbarrier_arrive(&bar);
    bulk_load(smem, in + (kind == Bulk::kMisaligned ? 8 : 0), 32, &bar);
  }
  __syncthreads();
  if (kind == Bulk::kStale) out[0] = smem[0];
  if (kind != Bulk::kNoWait) mbarrier_wait(&bar, 0);
  out[1] = smem[0];
}

TEST_F(Misuse, BulkCopies) {
  const auto in = upload(stream_, std::vector<unsigned char>(64, 9));
  auto out = upload(stream_, std::vector<unsigned char>(2, 0));
  const auto run = [&](Bulk kind) {
    return [&, kind] {
      launch(bulk_misuse, {1, 32, 32}, stream_, kind, in.as<unsigned char>(),
             out.as<unsigned char>());
    };
  };
  expect_error(run(Bulk::kNoWait), "ended with 1 bulk copies");
  expect_error(run(Bulk::kNoBarrier), "was not initialised");
  expect_error(run(Bulk::kTooFew), "32 wait for an mbarrier");
  expect_error(run(Bulk::kOverwritten), "was overwritten");
  expect_error(run(Bulk::kTooManyArrivals), "more often than it counts");
  expect_error(run(Bulk::kMisaligned), "not aligned");
  run(Bulk::kStale)();
  EXPECT_EQ(download<unsigned char>(stream_, out), (std::vector<unsigned char>{0xff, 9}));
  cuda_emulator::set_compute_capability(8, 0);
  expect_error(run(Bulk::kStale), "needs compute capability 9.0");
}

// A loop on try_wait that nobody will ever end.
__global__ void polls_for_ever() {
  __shared__ std::uint64_t bar;
  if (threadIdx.x == 0) mbarrier_init(&bar, 2);
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_arrive(&bar);
  while (!mbarrier_try_wait(&bar, 0)) {
  }
}

TEST_F(Misuse, PollingWithoutHopeIsADeadlock) {
  expect_error([&] { launch(polls_for_ever, {1, 64}, stream_); }, "64 wait for an mbarrier");
}

// ---- wgmma ------------------------------------------------------------------------------------

enum class Warpgroup { kNoFence, kNoWait, kDifferent, kBeyond, kStale };

__global__ void wgmma_misuse(Warpgroup kind, float* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  for (unsigned i = threadIdx.x; i < 8192; i += 128) smem[i] = 0;
  __syncthreads();
  float d[4] = {5, 5, 5, 5};
  if (kind != Warpgroup::kNoFence) wgmma_fence();
  const bool odd = kind == Warpgroup::kDifferent && threadIdx.x == 77;
  const unsigned char* at = smem + (kind == Warpgroup::kBeyond ? 7168 : odd ? 1024 : 0);
  const auto a = wgmma_descriptor(at, 0, 1024, Swizzle::k128B);
  wgmma_m64k16_bf16<8>(d, a, wgmma_descriptor(smem, 0, 1024, Swizzle::k128B), false);
  wgmma_commit();
  if (kind == Warpgroup::kStale) out[0] = d[0];
  if (kind != Warpgroup::kNoWait) wgmma_wait<0>();
  out[1] = d[0];
}

TEST_F(Misuse, Wgmma) {
  auto out = poisoned<float>(stream_, 2);
  const auto run = [&](Warpgroup kind, unsigned threads = 128) {
    return [&, kind, threads] {
      launch(wgmma_misuse, {1, threads, 8192}, stream_, kind, out.as<float>());
    };
  };
  expect_error(run(Warpgroup::kNoFence), "without a wgmma_fence");
  expect_error(run(Warpgroup::kNoWait), "never waited for");
  expect_error(run(Warpgroup::kDifferent), "different descriptors");
  expect_error(run(Warpgroup::kBeyond), "beyond dynamic shared memory");
  expect_error(run(Warpgroup::kStale, 96), "a warpgroup has 128 threads");
  run(Warpgroup::kStale)();
  EXPECT_EQ(download<float>(stream_, out), (std::vector<float>{5, 0}));
  cuda_emulator::set_compute_capability(10, 0);
  expect_error(run(Warpgroup::kStale), "needs compute capability 9.0");
}

// ---- orders and OS threads --------------------------------------------------------------------

// Without the barrier the value depends on who runs first.
__global__ void neighbour(int* out, bool barrier) {
  MILLRACE_DYNAMIC_SMEM(smem);
  auto* values = reinterpret_cast<int*>(smem);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}
__global__ void first_block(int* out) {
  if (threadIdx.x == 0) atomicCAS(out, -1, static_cast<int>(blockIdx.x));
}

TEST_F(Misuse, AMissingBarrierShowsInSomeOrder) {
  using cuda_emulator::Order;
  std::vector<int> right(64);
  for (int i = 0; i < 64; ++i) right[static_cast<std::size_t>(i)] = (i + 1) % 64;
  for (const Order order : {Order::kForward, Order::kReverse, Order::kShuffled}) {
    cuda_emulator::set_order(order, 5);
    auto out = poisoned<int>(stream_, 64);
    launch(neighbour, {1, 64, 256}, stream_, out.as<int>(), true);
    EXPECT_EQ(download<int>(stream_, out), right);
    launch(neighbour, {1, 64, 256}, stream_, out.as<int>(), false);
    EXPECT_NE(download<int>(stream_, out), right);
  }
  cuda_emulator::set_order(Order::kReverse);
  auto out = poisoned<int>(stream_, 1);
  launch(first_block, {9, 32}, stream_, out.as<int>());
  EXPECT_EQ(download<int>(stream_, out)[0], 8);
}

__global__ void block_maximum(const int* in, int* out) {
  __shared__ int values[128];
  values[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];
  __syncthreads();
  for (unsigned step = 64; step > 0; step /= 2) {
    if (threadIdx.x < step)
      values[threadIdx.x] = max(values[threadIdx.x], values[threadIdx.x + step]);
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = values[0];
}

TEST_F(Misuse, OsThreadsRunKernelsSideBySide) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &wrong] {
      Stream stream;
      std::vector<int> values(16 * 128);
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<int>(i * 7919 % 1000) + t;
      const auto in = upload(stream, values);
      auto out = poisoned<int>(stream, 16);
      for (int repeat = 0; repeat < 20; ++repeat) {
        launch(block_maximum, {16, 128}, stream, in.as<int>(), out.as<int>());
        const auto got = download<int>(stream, out);
        for (std::size_t b = 0; b < 16; ++b) {
          const auto first = values.begin() + static_cast<std::ptrdiff_t>(b * 128);
          if (got[b] != *std::max_element(first, first + 128)) ++wrong;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace millrace::kernels::cuda
