// A small pool for the loops of the CPU kernels.
//
// parallel_for cuts [0, count) into one contiguous range per thread and returns when all are done;
// the caller works on the first range. Kernels are written so that their results do not depend on
// the cut, hence not on the number of threads. Idle workers spin for a short bounded time and then
// sleep: several ranks share a few cores, and a spinning rank would slow the one it waits for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>

#include "kernels/tensor_view.h"

namespace millrace::kernels {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts no thread and parallel_for is a plain call. `spins` is
  // the number of pause instructions an idle thread runs before it sleeps (about 10 to 40 ns each).
  // `on_start`, when given, runs on each thread before its first range, with the number of its
  // ranges: 0 on the caller, here.
  explicit ThreadPool(int threads, int spins = kDefaultSpins,
                      std::function<void(int thread)> on_start = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // About 50 us: longer than what one thread does alone between two ops of a step, shorter than
  // the pause between steps, in which other threads want the core. A sleeping thread of a virtual
  // machine takes as long to wake.
  static constexpr int kDefaultSpins = 2000;

  int threads() const { return threads_; }

  using RangeFn = void (*)(void* argument, std::int64_t begin, std::int64_t end);
  // One caller at a time, never from inside a range. Ranges of fewer than `grain` indices are not
  // worth a wake-up: fewer threads then take part. `fn` must not throw.
  void run(std::int64_t count, std::int64_t grain, RangeFn fn, void* argument);

 private:
  struct State;
  std::unique_ptr<State> state_;  // null when threads_ == 1
  int threads_ = 1;
};

// First argument of every op: where it runs. A device stream joins it for CUDA. `pool` may be null:
// the calling thread then does all the work. `workspace`, 64-byte aligned, holds what the threads
// of one op share (kernels/packed_gemm.h); its contents do not survive the op. Empty: ops use the
// calling thread's scratch and work in smaller portions.
struct Context {
  ThreadPool* pool = nullptr;
  std::span<std::byte> workspace = {};
};

// fn(begin, end) over [0, count). Every op uses this form; `grain` is the least number of indices
// worth giving to one thread.
template <class Fn>
MILLRACE_ALWAYS_INLINE void parallel_for(const Context& context, std::int64_t count,
                                         std::int64_t grain, Fn&& fn) {
  if (count <= 0) return;
  if (context.pool == nullptr || context.pool->threads() == 1 || count < 2 * grain) {
    fn(std::int64_t{0}, count);
    return;
  }
  using F = std::remove_reference_t<Fn>;
  context.pool->run(
      count, grain,
      [](void* f, std::int64_t begin, std::int64_t end) { (*static_cast<F*>(f))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace millrace::kernels
