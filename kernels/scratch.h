// Scratch memory of the calling thread for the inside of one kernel call.
#pragma once

#include <cstddef>

namespace millrace::kernels {

// Enough for the largest panel any kernel converts; kernels cut their work to fit.
inline constexpr std::size_t kScratchBytes = std::size_t{1} << 20;

// kScratchBytes, 64-byte aligned, the same address at every call of a thread: allocated at the
// thread's first call (a warm-up step reaches every pool thread), freed at its end. Contents do not
// survive from one kernel call to the next.
std::byte* thread_scratch();

}  // namespace millrace::kernels
