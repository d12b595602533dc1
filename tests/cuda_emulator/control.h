// What tests may ask of the emulator beyond kernels/cuda/runtime.h: other devices, faults, orders.
// Settings hold for the whole process; change them while no other thread works with the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace millrace::cuda_emulator {

// A kernel broke a rule: a barrier that not all threads reach, memory of a background copy never
// waited for, an access out of shared memory. The text names the kernel, its block and the place.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Which thread of a block and which block of a grid goes first. Right kernels give the same bits in
// all orders.
enum class Order { kForward, kReverse, kShuffled };
void set_order(Order order, std::uint64_t seed = 0);
Order order();
std::uint64_t order_seed();

// At first: one device of compute capability 9.0 with 132 multiprocessors and 64 GiB.
void set_device_count(int count);
void set_compute_capability(int major, int minor);
void set_sm_count(int count);
void set_memory_bytes(std::size_t bytes);
// Device memory held by DeviceBuffers now, over all devices.
std::size_t allocated_bytes();

// The nth call from now (1: the next) of an operation throws CudaError(operation, code). Operations
// are named as in the messages of CudaError: cudaMalloc, cudaHostAlloc, cudaMemcpyAsync,
// cudaMemsetAsync, launch, early launch (on a stream that overlaps), cudaGraphInstantiate,
// cudaGraphLaunch, cudaStreamCreate, cudaEventCreate, cudaEventRecord, cudaStreamWaitEvent,
// cudaStreamQuery, cudaEventQuery. With `sticky` every call of any operation fails alike from then
// on, as after a fault of a kernel.
void fail_nth(const std::string& operation, int nth, int code, bool sticky = false);
// While stalled, no work is ever done: synchronize() runs into its deadline.
void set_stalled(bool stalled);
// Streams do their work as late as they may: when it is waited for, when memory is freed, or when
// an event has been asked for the 50th time. Then what a step in flight still reads and what it has
// not written yet shows. Copies from pageable memory take its bytes at once and copies to it are
// done at once, as on a device.
void set_lazy(bool lazy);
// Forgets faults and settings.
void reset();

// Calls of an operation so far in this process, by the names above.
std::uint64_t calls(const std::string& operation);

}  // namespace millrace::cuda_emulator
