// Faults, devices and limits of the emulated runtime.
#include "tests/cuda_emulator/control.h"

#include <gtest/gtest.h>

#include <thread>

#include "kernels/cuda/launch.cuh"
#include "tests/kernels/cuda/device_memory.h"

namespace millrace::kernels::cuda {
namespace {

using namespace std::chrono_literals;
namespace emulator = cuda_emulator;

void count(int* out) { ++*out; }

class Control : public testing::Test {
 protected:
  void TearDown() override { emulator::reset(); }

  static int code_of(const std::function<void()>& call) {
    try {
      call();
    } catch (const CudaError& e) {
      return e.code();
    }
    return 0;
  }
};

TEST_F(Control, TheNthCallFails) {
  Stream stream;
  DeviceBuffer out(4);
  fill(stream, out.data(), 0, 4);
  emulator::fail_nth("launch", 3, kErrorLaunchFailure);
  const auto run = [&] { launch(count, {1, 1}, stream, out.as<int>()); };
  EXPECT_EQ(code_of(run), 0);
  EXPECT_EQ(code_of(run), 0);
  try {
    run();
    FAIL();
  } catch (const CudaError& e) {
    EXPECT_EQ(e.code(), kErrorLaunchFailure);
    EXPECT_EQ(e.operation().rfind("launch control_test.cc:", 0), 0U) << e.operation();
  }
  EXPECT_EQ(code_of(run), 0);
  EXPECT_EQ(download<int>(stream, out)[0], 3);
}

TEST_F(Control, EveryOperationCanFail) {
  Stream stream;
  Event event;
  DeviceBuffer memory(16);
  char host[16];
  const Graph graph = Graph::capture(stream, [&] { fill(stream, memory.data(), 1, 16); });
  const std::pair<const char*, std::function<void()>> calls[] = {
      {"cudaMalloc", [] { DeviceBuffer b(1); }},
      {"cudaHostAlloc", [] { PinnedBuffer b(1); }},
      {"cudaStreamCreate", [] { Stream s; }},
      {"cudaEventCreate", [] { Event e; }},
      {"cudaEventRecord", [&] { event.record(stream); }},
      {"cudaStreamWaitEvent", [&] { event.make_wait(stream); }},
      {"cudaEventQuery", [&] { event.done(); }},
      {"cudaStreamQuery", [&] { synchronize(stream, 1s); }},
      {"cudaMemcpyAsync", [&] { copy_to_host(stream, host, memory.data(), 16); }},
      {"cudaMemsetAsync", [&] { fill(stream, memory.data(), 1, 16); }},
      {"cudaGraphLaunch", [&] { graph.launch(stream); }},
      {"cudaGraphInstantiate", [&] { Graph::capture(stream, [] {}); }},
  };
  for (const auto& [name, call] : calls) {
    const auto before = emulator::calls(name);
    emulator::fail_nth(name, 1, 77);
    EXPECT_EQ(code_of(call), 77) << name;
    EXPECT_EQ(code_of(call), 0) << name;
    EXPECT_EQ(emulator::calls(name), before + 2) << name;
  }
}

TEST_F(Control, AStickyFaultStays) {
  Stream stream;
  emulator::fail_nth("cudaStreamQuery", 1, kErrorIllegalAddress, true);
  EXPECT_EQ(code_of([&] { synchronize(stream, 1s); }), kErrorIllegalAddress);
  EXPECT_EQ(code_of([&] { synchronize(stream, 1s); }), kErrorIllegalAddress);
  EXPECT_EQ(code_of([] { DeviceBuffer b(1); }), kErrorIllegalAddress);
  emulator::reset();
  EXPECT_EQ(code_of([] { DeviceBuffer b(1); }), 0);
}

TEST_F(Control, AStalledDeviceRunsIntoTheDeadline) {
  Stream stream;
  Event event;
  event.record(stream);
  emulator::set_stalled(true);
  EXPECT_FALSE(done(stream));
  EXPECT_EQ(code_of([&] { synchronize(stream, 20ms); }), kErrorDeadline);
  EXPECT_EQ(code_of([&] { event.synchronize(20ms); }), kErrorDeadline);
  std::thread later([] {
    std::this_thread::sleep_for(20ms);
    emulator::set_stalled(false);
  });
  EXPECT_EQ(code_of([&] { synchronize(stream, kNoDeadline); }), 0);
  later.join();
}

TEST_F(Control, DevicesAndTheirMemory) {
  emulator::set_device_count(0);
  EXPECT_EQ(device_count(), 0);
  emulator::set_device_count(2);
  emulator::set_memory_bytes(1000);
  emulator::set_compute_capability(8, 0);
  emulator::set_sm_count(108);
  EXPECT_EQ(current_cc(), 80);
  EXPECT_EQ(current_sm_count(), 108);
  const std::size_t before = emulator::allocated_bytes();
  {
    const DeviceBuffer a(600);
    EXPECT_EQ(emulator::allocated_bytes(), before + 600);
    EXPECT_EQ(device_info(0).memory_free_bytes, 400U);
    EXPECT_EQ(device_info(1).memory_free_bytes, 1000U);
    EXPECT_EQ(code_of([] { DeviceBuffer b(500); }), kErrorMemoryAllocation);
    set_device(1);
    EXPECT_EQ(code_of([] { DeviceBuffer b(500); }), 0);
    set_device(0);
  }
  EXPECT_EQ(emulator::allocated_bytes(), before);
}

TEST_F(Control, CapturesRefuseWhatTheDeviceRefuses) {
  Stream stream;
  Event event;
  const auto capture = [&](const std::function<void()>& inside) {
    return code_of([&] { Graph::capture(stream, inside); });
  };
  EXPECT_EQ(capture([&] { synchronize(stream, 1s); }), kErrorCaptureUnsupported);
  EXPECT_EQ(capture([&] {
              event.record(stream);
              event.done();
            }),
            kErrorCaptureUnsupported);
  EXPECT_EQ(capture([] { DeviceBuffer b(1); }), kErrorCaptureUnsupported);
  EXPECT_EQ(capture([] {}), 0);
}

}  // namespace
}  // namespace millrace::kernels::cuda
