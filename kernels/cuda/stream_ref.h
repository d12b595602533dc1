// What launchers of kernels need to know: the stream they are to use, and the device they are on.
// Apart from runtime.h because every .cu file includes it, once for the host and once for each
// architecture: <chrono> and <string> alone are half of what a small one takes to compile.
#pragma once

namespace millrace::kernels::cuda {

// A borrowed stream: the handle of a Stream, which must outlive it. The default value is CUDA's
// legacy default stream; tests may use it, the engine does not (it cannot be captured).
struct StreamRef {
  void* handle = nullptr;
  // Kernels launched here may start while the one in front still runs (programmatic dependent
  // launch, on Hopper and later): they wait in await_previous_kernel() until it has ended, which
  // hides the time of a launch. Graphs captured here keep it.
  bool overlap = false;
  friend bool operator==(StreamRef, StreamRef) = default;
};

// device_info(current_device()).cc(), cached: launchers ask it on every call.
int current_cc();
// Multiprocessors of the current device, cached.
int current_sm_count();

}  // namespace millrace::kernels::cuda
