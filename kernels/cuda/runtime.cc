// kernels/cuda/runtime.h over the CUDA runtime. libcuda is not linked: its one call that is needed,
// for tensor maps, is asked of the runtime.
#include "kernels/cuda/runtime.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

namespace millrace::kernels::cuda {
namespace {

cudaStream_t native(StreamRef stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t native_event(void* handle) { return static_cast<cudaEvent_t>(handle); }

[[noreturn]] void raise(std::string operation, cudaError_t code) {
  throw CudaError(std::move(operation), code, cudaGetErrorString(code));
}

void check(const char* operation, cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // forget it where it is not sticky: the exception reports it
  raise(operation, code);
}

// Of destructors, which must not throw. Errors of a process that ends with the driver gone are
// silent.
void report(const char* operation, cudaError_t code) noexcept {
  if (code == cudaSuccess || code == cudaErrorCudartUnloading) return;
  std::fprintf(stderr, "%s: %s (%d)\n", operation, cudaGetErrorString(code),
               static_cast<int>(code));
}

// cudaSuccess: true, not ready: false, anything else is thrown.
bool is_done(const char* operation, cudaError_t code) {
  if (code == cudaErrorNotReady) return false;
  check(operation, code);
  return true;
}

std::atomic<bool> hangs{false};

// Spins for a millisecond, as steps take a few of them, then sleeps between looks.
template <class Done>
void wait_done(const char* operation, std::chrono::milliseconds deadline, Done&& done) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  while (!done()) {
    const auto waited = Clock::now() - start;
    if (deadline != kNoDeadline && waited >= deadline) {
      hangs = true;
      throw CudaError(operation, kErrorDeadline,
                      fmt::format("not done after {} ms", deadline.count()));
    }
    if (waited >= std::chrono::milliseconds(1)) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

CudaError::CudaError(std::string operation, int code, const std::string& text)
    : std::runtime_error(fmt::format("{}: {} ({})", operation, text, code)),
      operation_(std::move(operation)),
      code_(code) {}

// ---- devices ----------------------------------------------------------------------------------

int device_count() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return 0;
  }
  check("cudaGetDeviceCount", code);
  return count;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties{};
  check("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
  DeviceInfo info;
  info.index = device;
  info.name = properties.name;
  info.sm_count = properties.multiProcessorCount;
  info.cc_major = properties.major;
  info.cc_minor = properties.minor;
  info.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  info.smem_per_block_bytes = properties.sharedMemPerBlockOptin;
  info.pci_bus_id = fmt::format("{:04x}:{:02x}:{:02x}.0", properties.pciDomainID,
                                properties.pciBusID, properties.pciDeviceID);
  const int before = current_device();
  set_device(device);
  const cudaError_t code = cudaMemGetInfo(&info.memory_free_bytes, &info.memory_total_bytes);
  set_device(before);
  check("cudaMemGetInfo", code);
  return info;
}

void set_device(int device) { check("cudaSetDevice", cudaSetDevice(device)); }

int current_device() {
  int device = 0;
  check("cudaGetDevice", cudaGetDevice(&device));
  return device;
}

// The runtime keeps attributes in the process: a query costs some tens of nanoseconds.
int current_cc() {
  const int device = current_device();
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}
int current_sm_count() { return attribute(cudaDevAttrMultiProcessorCount, current_device()); }

// ---- streams and events -----------------------------------------------------------------------

Stream::Stream(int priority, bool overlap) : overlap_(overlap) {
  int lowest = 0;
  int highest = 0;
  check("cudaDeviceGetStreamPriorityRange", cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  cudaStream_t stream = nullptr;
  check("cudaStreamCreate", cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                                         std::clamp(priority, highest, lowest)));
  handle_ = stream;
}
Stream::~Stream() {
  if (handle_ != nullptr) report("cudaStreamDestroy", cudaStreamDestroy(native(*this)));
}

bool done(StreamRef stream) { return is_done("cudaStreamQuery", cudaStreamQuery(native(stream))); }

void synchronize(StreamRef stream, std::chrono::milliseconds deadline) {
  wait_done("cudaStreamQuery", deadline, [stream] { return done(stream); });
}

Event::Event(Kind kind) {
  cudaEvent_t event = nullptr;
  check("cudaEventCreate",
        cudaEventCreateWithFlags(
            &event, kind == Kind::kTiming ? cudaEventDefault : cudaEventDisableTiming));
  handle_ = event;
}
Event::~Event() {
  if (handle_ != nullptr) report("cudaEventDestroy", cudaEventDestroy(native_event(handle_)));
}

void Event::record(StreamRef stream) {
  check("cudaEventRecord", cudaEventRecord(native_event(handle_), native(stream)));
}
void Event::make_wait(StreamRef stream) const {
  check("cudaStreamWaitEvent", cudaStreamWaitEvent(native(stream), native_event(handle_), 0));
}
bool Event::done() const {
  return is_done("cudaEventQuery", cudaEventQuery(native_event(handle_)));
}
void Event::synchronize(std::chrono::milliseconds deadline) const {
  wait_done("cudaEventQuery", deadline, [this] { return done(); });
}

bool device_hangs() noexcept { return hangs; }

float elapsed_ms(const Event& start, const Event& end) {
  float ms = 0.0F;
  check("cudaEventElapsedTime",
        cudaEventElapsedTime(&ms, native_event(start.handle()), native_event(end.handle())));
  return ms;
}

// ---- memory -----------------------------------------------------------------------------------

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes != 0) check("cudaMalloc", cudaMalloc(&data_, bytes));
}
DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr && !hangs) report("cudaFree", cudaFree(data_));
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  check("cudaHostAlloc", cudaHostAlloc(&data_, bytes, cudaHostAllocPortable));
  std::memset(data_, 0, bytes);
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr && !hangs) report("cudaFreeHost", cudaFreeHost(data_));
}

namespace {
void copy(StreamRef stream, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, kind, native(stream)));
}
}  // namespace

void copy_to_device(StreamRef stream, void* device, const void* host, std::size_t bytes) {
  copy(stream, device, host, bytes, cudaMemcpyHostToDevice);
}
void copy_to_host(StreamRef stream, void* host, const void* device, std::size_t bytes) {
  copy(stream, host, device, bytes, cudaMemcpyDeviceToHost);
}
void copy_on_device(StreamRef stream, void* to, const void* from, std::size_t bytes) {
  copy(stream, to, from, bytes, cudaMemcpyDeviceToDevice);
}
void fill(StreamRef stream, void* device, int value, std::size_t bytes) {
  if (bytes == 0) return;
  check("cudaMemsetAsync", cudaMemsetAsync(device, value, bytes, native(stream)));
}

// ---- graphs -----------------------------------------------------------------------------------

bool capturing(StreamRef stream) {
  cudaStreamCaptureStatus status{};
  check("cudaStreamIsCapturing", cudaStreamIsCapturing(native(stream), &status));
  return status == cudaStreamCaptureStatusActive;
}

namespace {
struct GraphState {
  cudaGraphExec_t exec = nullptr;
  std::size_t nodes = 0;
};
}  // namespace

void Graph::begin_capture(StreamRef stream) {
  // Thread-local: other threads may allocate meanwhile, this one may not.
  check("cudaStreamBeginCapture",
        cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal));
}

void Graph::abandon_capture(StreamRef stream) noexcept {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(native(stream), &graph);  // its error is the one being thrown
  if (graph != nullptr) report("cudaGraphDestroy", cudaGraphDestroy(graph));
  cudaGetLastError();
}

Graph Graph::end_capture(StreamRef stream) {
  cudaGraph_t captured = nullptr;
  check("cudaStreamEndCapture", cudaStreamEndCapture(native(stream), &captured));
  Graph graph;
  auto state = std::make_unique<GraphState>();
  cudaError_t code = cudaGraphGetNodes(captured, nullptr, &state->nodes);
  if (code == cudaSuccess) code = cudaGraphInstantiate(&state->exec, captured, 0);
  report("cudaGraphDestroy", cudaGraphDestroy(captured));
  check("cudaGraphInstantiate", code);
  graph.exec_ = state.release();
  return graph;
}

Graph::~Graph() {
  if (exec_ == nullptr || hangs) return;
  const std::unique_ptr<GraphState> state(static_cast<GraphState*>(exec_));
  report("cudaGraphExecDestroy", cudaGraphExecDestroy(state->exec));
}

std::size_t Graph::node_count() const {
  return exec_ == nullptr ? 0 : static_cast<GraphState*>(exec_)->nodes;
}

void Graph::launch(StreamRef stream) const {
  if (exec_ == nullptr) throw CudaError("cudaGraphLaunch", kErrorInvalidValue, "an empty graph");
  check("cudaGraphLaunch", cudaGraphLaunch(static_cast<GraphState*>(exec_)->exec, native(stream)));
}

}  // namespace millrace::kernels::cuda
