// Owners and calls of the CUDA runtime, for plain C++ files: no CUDA header is needed to include
// this. All work of the engine on a device goes through here and through launch() of
// kernels/cuda/launch.cuh. Two libraries implement it: runtime.cc over the CUDA runtime, and
// tests/cuda_emulator over host memory.
//
// Threading: a device is chosen per OS thread (set_device), as in CUDA. Objects belong to the
// device that was current when they were made and are used by one thread at a time; StreamRef,
// pointers and DeviceInfo may be copied freely. Errors: every failure throws CudaError. Destructors
// never throw; they print to stderr instead.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/cuda/stream_ref.h"

namespace millrace::kernels::cuda {

// A call of the runtime failed, or an earlier kernel did (the device reports that at a later call).
// Launch and memory faults leave the device context unusable: only a new process helps.
class CudaError : public std::runtime_error {
 public:
  // `operation` is the runtime's name of the call ("cudaMalloc", "launch rms_norm.cu:41"), `code`
  // the cudaError_t, `text` the runtime's words for it.
  CudaError(std::string operation, int code, const std::string& text);

  const std::string& operation() const { return operation_; }
  int code() const { return code_; }

 private:
  std::string operation_;
  int code_;
};

// Values of cudaError_t that callers look at.
inline constexpr int kErrorInvalidValue = 1;
inline constexpr int kErrorMemoryAllocation = 2;
inline constexpr int kErrorIllegalAddress = 700;
inline constexpr int kErrorLaunchFailure = 719;
inline constexpr int kErrorCaptureUnsupported = 900;
inline constexpr int kErrorNotPermitted = 800;
// Our own: a deadline of synchronize() passed. The work may still be running.
inline constexpr int kErrorDeadline = -1;

// ---- devices --------------------------------------------------------------------------------

struct DeviceInfo {
  int index = 0;
  std::string name;
  int sm_count = 0;
  int cc_major = 0;  // compute capability: 8.0 A100, 9.0 H100, 10.0 B200
  int cc_minor = 0;
  std::size_t memory_total_bytes = 0;
  std::size_t memory_free_bytes = 0;  // at the time of the call
  std::size_t l2_bytes = 0;
  std::size_t smem_per_block_bytes = 0;  // with the opt-in that launch() makes
  std::string pci_bus_id;                // "0000:3b:00.0"

  int cc() const { return cc_major * 10 + cc_minor; }
};

// 0 when there is no device or no driver; throws only when a driver answers with something else.
int device_count();
DeviceInfo device_info(int device);
// The device of the calling thread.
void set_device(int device);
int current_device();

// ---- streams, events --------------------------------------------------------------------------

class Stream {
 public:
  // Non-blocking towards the default stream. Lower numbers run first; devices clamp to their range.
  explicit Stream(int priority = 0, bool overlap = false);
  ~Stream();
  Stream(Stream&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), overlap_(other.overlap_) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(overlap_, other.overlap_);
    return *this;
  }

  StreamRef ref() const { return {handle_, overlap_}; }
  operator StreamRef() const { return ref(); }  // NOLINT: a Stream is usable where one is borrowed

 private:
  void* handle_ = nullptr;
  bool overlap_ = false;
};

// A deadline of kNoDeadline waits for ever; only tools and tests use it.
inline constexpr std::chrono::milliseconds kNoDeadline{-1};

// Waits until all work of the stream is done, by polling (with short sleeps after the first
// millisecond). Past the deadline throws CudaError(kErrorDeadline): the device or a peer hangs.
void synchronize(StreamRef stream, std::chrono::milliseconds deadline);
// A wait has passed its deadline: kernels may hang, and to free memory is to wait for them. From
// then on buffers and graphs are left to the end of the process, which should come soon.
bool device_hangs() noexcept;
// True when all work of the stream is done; throws when it failed.
bool done(StreamRef stream);

class Event {
 public:
  enum class Kind {
    kOrder,   // only orders streams: cheap
    kTiming,  // can also be asked for elapsed_ms
  };
  explicit Event(Kind kind = Kind::kOrder);
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  void record(StreamRef stream);
  // Work given to `stream` from now on starts after the last record().
  void make_wait(StreamRef stream) const;
  bool done() const;
  void synchronize(std::chrono::milliseconds deadline) const;
  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// Device time between two recorded kTiming events, both done.
float elapsed_ms(const Event& start, const Event& end);

// ---- memory -----------------------------------------------------------------------------------

// Memory of the current device, aligned to at least 256 bytes, contents undefined. Allocation
// synchronises the device: at start-up only.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes);  // 0 bytes: no allocation, data() is null
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Page-locked host memory, which copies to and from the device without a detour. Zero-filled.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Copies are in stream order. From or to pageable host memory they may block the caller; inside a
// capture the host side must be pinned and stay valid as long as the graph.
void copy_to_device(StreamRef stream, void* device, const void* host, std::size_t bytes);
void copy_to_host(StreamRef stream, void* host, const void* device, std::size_t bytes);
void copy_on_device(StreamRef stream, void* to, const void* from, std::size_t bytes);
// Sets every byte to `value`.
void fill(StreamRef stream, void* device, int value, std::size_t bytes);

// ---- graphs -----------------------------------------------------------------------------------

// Work recorded once and launched as one. Everything that varies between launches is read from
// device (or captured pinned) memory.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }

  // Calls record(), which gives work to `stream` (and to streams ordered after it by events that
  // lead back to it), and instantiates what it gave. Nothing of it runs. When record() throws, the
  // capture is ended and the exception goes on. Other threads may work meanwhile.
  template <class Record>
  static Graph capture(StreamRef stream, Record&& record) {
    begin_capture(stream);
    try {
      std::forward<Record>(record)();
    } catch (...) {
      abandon_capture(stream);
      throw;
    }
    return end_capture(stream);
  }

  bool empty() const { return exec_ == nullptr; }
  // Kernels and copies recorded.
  std::size_t node_count() const;
  void launch(StreamRef stream) const;

 private:
  static void begin_capture(StreamRef stream);
  static void abandon_capture(StreamRef stream) noexcept;
  static Graph end_capture(StreamRef stream);

  void* exec_ = nullptr;
};

bool capturing(StreamRef stream);

}  // namespace millrace::kernels::cuda
