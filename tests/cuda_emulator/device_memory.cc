// Devices and memory of the emulated runtime; streams, graphs and launches are in runtime.cc.
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "kernels/cuda/runtime.h"
#include "tests/cuda_emulator/scheduler.h"
#include "tests/cuda_emulator/settings.h"
#include "tests/cuda_emulator/stream_work.h"

namespace millrace::kernels::cuda {

using cuda_emulator::enter_call;
using cuda_emulator::settings;

bool capturing_by_this_thread();  // in runtime.cc

namespace {

thread_local int device = 0;

// Devices and memory of all threads.
struct Allocations {
  std::mutex mutex;
  std::unordered_map<void*, std::pair<std::size_t, int>> held;  // bytes, device
  std::map<const std::byte*, std::size_t> pinned;               // bytes
  std::size_t used(int of_device) const {
    std::size_t bytes = 0;
    for (const auto& [p, what] : held) bytes += what.second == of_device ? what.first : 0;
    return bytes;
  }
};
Allocations& allocations() {
  static Allocations all;
  return all;
}

void* allocate_poisoned(std::size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes) != 0) {
    throw CudaError("cudaMalloc", kErrorMemoryAllocation, "out of memory");
  }
  std::memset(p, cuda_emulator::kPoison, bytes);
  return p;
}

}  // namespace

// ---- devices ----------------------------------------------------------------------------------

int device_count() { return settings().device_count; }

DeviceInfo device_info(int index) {
  if (index < 0 || index >= settings().device_count) {
    throw CudaError("cudaGetDeviceProperties", 101, "invalid device ordinal");
  }
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  DeviceInfo info;
  info.index = index;
  info.name = "emulated device";
  info.sm_count = settings().sm_count;
  info.cc_major = settings().cc / 10;
  info.cc_minor = settings().cc % 10;
  info.memory_total_bytes = settings().memory_bytes;
  info.memory_free_bytes = info.memory_total_bytes - all.used(index);
  info.l2_bytes = std::size_t{50} << 20;
  info.smem_per_block_bytes = cuda_emulator::smem_limit();
  info.pci_bus_id = fmt::format("0000:{:02x}:00.0", index + 1);
  return info;
}

void set_device(int index) {
  if (index < 0 || index >= settings().device_count) {
    throw CudaError("cudaSetDevice", 101, "invalid device ordinal");
  }
  device = index;
}
int current_device() { return device; }
int current_cc() { return settings().cc; }
int current_sm_count() { return settings().sm_count; }

// ---- buffers ----------------------------------------------------------------------------------

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (capturing_by_this_thread()) {
    throw CudaError("cudaMalloc", kErrorCaptureUnsupported,
                    "operation not permitted when stream is capturing");
  }
  enter_call("cudaMalloc");
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  if (bytes > settings().memory_bytes - all.used(device)) {
    throw CudaError("cudaMalloc", kErrorMemoryAllocation, "out of memory");
  }
  data_ = allocate_poisoned(bytes);
  all.held[data_] = {bytes, device};
}
DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  cuda_emulator::StreamWork::finish_all();
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  all.held.erase(data_);
  std::free(data_);
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  enter_call("cudaHostAlloc");
  data_ = allocate_poisoned(bytes);
  std::memset(data_, 0, bytes);
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  all.pinned[static_cast<std::byte*>(data_)] = bytes;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  cuda_emulator::StreamWork::finish_all();
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  all.pinned.erase(static_cast<std::byte*>(data_));
  std::free(data_);
}

}  // namespace millrace::kernels::cuda

std::size_t millrace::cuda_emulator::allocated_bytes() {
  auto& all = kernels::cuda::allocations();
  const std::lock_guard lock(all.mutex);
  std::size_t bytes = 0;
  for (const auto& [p, held] : all.held) bytes += held.first;
  return bytes;
}

bool millrace::cuda_emulator::pinned(const void* host) {
  auto& all = kernels::cuda::allocations();
  const std::lock_guard lock(all.mutex);
  const auto* at = static_cast<const std::byte*>(host);
  auto it = all.pinned.upper_bound(at);
  if (it == all.pinned.begin()) return false;
  --it;
  return at < it->first + it->second;
}
