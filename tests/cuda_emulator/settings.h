// What control.h sets, as the emulator's own files read it.
#pragma once

#include <atomic>
#include <cstddef>
#include <string>

#include "tests/cuda_emulator/control.h"

namespace millrace::cuda_emulator {

struct Settings {
  std::atomic<int> device_count{1};
  std::atomic<int> cc{90};
  std::atomic<int> sm_count{132};
  std::atomic<std::size_t> memory_bytes{std::size_t{64} << 30};
  std::atomic<bool> stalled{false};
  std::atomic<bool> lazy{false};
  std::atomic<Order> order{Order::kForward};
  std::atomic<std::uint64_t> seed{0};
};
Settings& settings();

// Counts a call of the runtime and throws the fault injected for it, if any. `place` is added to
// the name of the operation in the error.
void enter_call(const char* operation, const std::string& place = {});

// Whether the address lies in a PinnedBuffer.
bool pinned(const void* host);

// Dynamic shared memory a block may have, by compute capability.
std::size_t smem_limit();

}  // namespace millrace::cuda_emulator
