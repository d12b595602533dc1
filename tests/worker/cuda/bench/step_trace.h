// Where the time of a step goes: an event behind every launch. The linker puts this in front of the
// engine's own launch function in the benchmark alone (--wrap), so the engine knows nothing of it.
// Launches inside graphs are not seen: run with device.graphs off.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace millrace::bench {

struct TracedKernel {
  std::string name;  // "gemm_wgmma.cu 384x1": file of the launch and its grid
  int launches = 0;
  double us = 0;  // of all launches together, the gaps before them included
};

// False under the emulator.
bool can_trace();
void start_trace();
// Waits for the device. By time, longest first.
std::vector<TracedKernel> end_trace();

}  // namespace millrace::bench
