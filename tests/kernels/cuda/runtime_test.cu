// kernels/cuda/runtime.h: the same expectations of the CUDA runtime and of the emulator's.
#include "kernels/cuda/runtime.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cuda/launch.cuh"
#include "tests/kernels/cuda/device_memory.h"

namespace millrace::kernels::cuda {
namespace {

using namespace std::chrono_literals;

// out[i] = in[i] * factor + *addend
__global__ void scale(const int* in, int* out, int count, int factor, const int* addend) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = in[i] * factor + *addend;
}

struct Fixture {
  Stream stream;
  std::vector<int> values = std::vector<int>(1000);
  DeviceBuffer in, out, addend;

  Fixture() {
    std::iota(values.begin(), values.end(), 0);
    in = upload(stream, values);
    out = poisoned<int>(stream, values.size());
    addend = upload(stream, std::vector<int>{7});
  }
  void run(StreamRef on, int factor) {
    launch(scale, {4, 256}, on, in.as<int>(), out.as<int>(), 1000, factor, addend.as<int>());
  }
  void expect(int factor, int plus) {
    const auto got = download<int>(stream, out, 1000);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(got[static_cast<std::size_t>(i)], i * factor + plus);
  }
};

TEST(Runtime, DeviceInfoIsPlausible) {
  const int device = current_device();
  const DeviceInfo info = device_info(device);
  EXPECT_EQ(info.index, device);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GE(info.sm_count, 1);
  EXPECT_GE(info.cc(), 80);
  EXPECT_EQ(info.cc(), current_cc());
  EXPECT_EQ(info.sm_count, current_sm_count());
  EXPECT_GT(info.memory_free_bytes, 0U);
  EXPECT_LE(info.memory_free_bytes, info.memory_total_bytes);
  EXPECT_GE(info.smem_per_block_bytes, std::size_t{48} << 10);
  EXPECT_GT(info.l2_bytes, 0U);
  EXPECT_EQ(info.pci_bus_id.size(), 12U) << info.pci_bus_id;
  EXPECT_THROW(device_info(99), CudaError);
  EXPECT_THROW(set_device(99), CudaError);
}

TEST(Runtime, CopiesFillsAndKernelsAreInOrder) {
  Fixture f;
  fill(f.stream, f.out.data(), 0, f.out.bytes());
  f.run(f.stream, 3);
  f.expect(3, 7);
  copy_on_device(f.stream, f.in.data(), f.out.data(), f.out.bytes());
  f.run(f.stream, 1);
  f.expect(3, 14);
  copy_to_host(f.stream, nullptr, nullptr, 0);  // nothing to do
  EXPECT_TRUE(done(f.stream));
}

TEST(Runtime, EmptyThings) {
  const DeviceBuffer empty(0);
  EXPECT_EQ(empty.data(), nullptr);
  EXPECT_EQ(PinnedBuffer(0).data(), nullptr);
  EXPECT_TRUE(Graph().empty());
  EXPECT_EQ(Graph().node_count(), 0U);
  Stream stream;
  EXPECT_THROW(Graph().launch(stream), CudaError);
  launch(scale, {0, 256}, stream, nullptr, nullptr, 0, 0, nullptr);  // no blocks: nothing
  synchronize(stream, 1s);
}

TEST(Runtime, MovedOwnersLeaveNothingBehind) {
  DeviceBuffer a(512);
  std::byte* const data = a.data();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 256, 0U);
  DeviceBuffer b(std::move(a));
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: what moving leaves is the point
  EXPECT_EQ(a.bytes(), 0U);
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
  PinnedBuffer p(64);
  EXPECT_EQ(p.as<int>()[15], 0);
  PinnedBuffer q;
  q = std::move(p);
  EXPECT_EQ(q.bytes(), 64U);
  Stream s;
  const StreamRef ref = s;
  Stream t(std::move(s));
  EXPECT_EQ(t.ref(), ref);
}

TEST(Runtime, EventsOrderStreamsAndMeasure) {
  Fixture f;
  Stream other(-1);
  Event start(Event::Kind::kTiming);
  Event end(Event::Kind::kTiming);
  Event order;
  start.record(f.stream);
  f.run(f.stream, 5);
  order.record(f.stream);
  order.make_wait(other);
  PinnedBuffer host(4000);
  copy_to_host(other, host.data(), f.out.data(), 4000);
  synchronize(other, 10s);
  EXPECT_EQ(host.as<int>()[999], 5002);
  end.record(f.stream);
  end.synchronize(10s);
  EXPECT_TRUE(end.done());
  EXPECT_GE(elapsed_ms(start, end), 0.0F);
  EXPECT_THROW(elapsed_ms(order, end), CudaError);  // was not made for timing
}

TEST(Runtime, GraphsReplayWhatWasRecorded) {
  Fixture f;
  Stream side;
  Event fork;
  Event join;
  PinnedBuffer host(4000);
  PinnedBuffer addend(4);
  addend.as<int>()[0] = 100;
  const Graph graph = Graph::capture(f.stream, [&] {
    EXPECT_TRUE(capturing(f.stream));
    copy_to_device(f.stream, f.addend.data(), addend.data(), 4);
    f.run(f.stream, 2);
    fork.record(f.stream);
    fork.make_wait(side);
    EXPECT_TRUE(capturing(side));
    copy_to_host(side, host.data(), f.out.data(), 4000);
    join.record(side);
    join.make_wait(f.stream);
  });
  EXPECT_FALSE(capturing(f.stream));
  EXPECT_FALSE(capturing(side));
  EXPECT_EQ(graph.node_count(), 3U);
  synchronize(f.stream, 10s);
  EXPECT_EQ(host.as<int>()[1], 0) << "recording must not run anything";
  for (const int plus : {100, -3}) {
    addend.as<int>()[0] = plus;
    graph.launch(f.stream);
    f.expect(2, plus);
    EXPECT_EQ(host.as<int>()[999], 1998 + plus);
  }
}

TEST(Runtime, CaptureEndsWhenRecordingThrows) {
  Fixture f;
  EXPECT_THROW(Graph::capture(f.stream,
                              [&] {
                                f.run(f.stream, 2);
                                throw std::runtime_error("no");
                              }),
               std::runtime_error);
  EXPECT_FALSE(capturing(f.stream));
  f.run(f.stream, 4);
  f.expect(4, 7);
}

__global__ void touch(unsigned char* out) {
  MILLRACE_DYNAMIC_SMEM(smem);
  smem[100 << 10] = static_cast<unsigned char>(threadIdx.x + 5);
  out[0] = smem[100 << 10];
}

TEST(Runtime, LaunchesOptInToLargeSharedMemoryAndRefuseTooMuch) {
  Stream stream;
  auto out = poisoned<unsigned char>(stream, 1);
  launch(touch, {1, 1, 120 << 10}, stream, out.as<unsigned char>());
  EXPECT_EQ(download<unsigned char>(stream, out)[0], 5);
  try {
    launch(touch, {1, 1, 1 << 20}, stream, out.as<unsigned char>());
    FAIL() << "a megabyte of shared memory was granted";
  } catch (const CudaError& e) {
    EXPECT_EQ(e.operation().rfind("launch runtime_test.cu:", 0), 0U) << e.operation();
    EXPECT_GT(e.code(), 0);
  }
  EXPECT_THROW(launch(touch, {1, 2048, 0}, stream, out.as<unsigned char>()), CudaError);
  launch(touch, {1, 1, 120 << 10}, stream, out.as<unsigned char>());  // the device still works
  EXPECT_EQ(download<unsigned char>(stream, out)[0], 5);
}

#if defined(MILLRACE_CUDA_EMULATED)
TEST(Runtime, BlocksThatAreMeantToRunTogetherFit) {
  Stream stream;
  auto out = poisoned<unsigned char>(stream, 1);
  launch(touch, {1, 1, 113 << 10, 2}, stream, out.as<unsigned char>());
  EXPECT_EQ(download<unsigned char>(stream, out)[0], 5);
  EXPECT_THROW(launch(touch, {1, 1, 114 << 10, 2}, stream, out.as<unsigned char>()), CudaError);
  EXPECT_THROW(launch(touch, {1, 1, 101 << 10, 3}, stream, out.as<unsigned char>()), CudaError);
}
#else
TEST(Runtime, BlocksThatAreMeantToRunTogetherGetTheSharedMemory) {
  const auto carveout = [] {
    cudaFuncAttributes attributes{};
    EXPECT_EQ(cudaFuncGetAttributes(&attributes, touch), cudaSuccess);
    return attributes.preferredShmemCarveout;
  };
  Stream stream;
  auto out = poisoned<unsigned char>(stream, 1);
  const std::size_t half = (device_info(current_device()).smem_per_block_bytes + 1024) / 2 - 1024;
  const std::size_t bytes = std::max<std::size_t>(half, 101 << 10);  // touch() needs so much
  launch(touch, {1, 1, bytes}, stream, out.as<unsigned char>());
  EXPECT_NE(carveout(), cudaSharedmemCarveoutMaxShared) << "not asked for";
  launch(touch, {1, 1, bytes, 2}, stream, out.as<unsigned char>());
  EXPECT_EQ(download<unsigned char>(stream, out)[0], 5);
  EXPECT_EQ(carveout(), cudaSharedmemCarveoutMaxShared);
  int together = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&together, touch, 1, half), cudaSuccess);
  EXPECT_GE(together, 2);
}
#endif

TEST(Runtime, TooMuchMemoryIsAnError) {
  try {
    const DeviceBuffer huge(std::size_t{1} << 46);
    FAIL() << "64 TiB were granted";
  } catch (const CudaError& e) {
    EXPECT_EQ(e.operation(), "cudaMalloc");
    EXPECT_EQ(e.code(), kErrorMemoryAllocation);
  }
  EXPECT_NO_THROW(DeviceBuffer(1 << 20));
}

}  // namespace
}  // namespace millrace::kernels::cuda
