#include "tests/cuda_emulator/fiber.h"

#include <atomic>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace millrace::cuda_emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 128 << 10;
#endif

}  // namespace

Fiber::Fiber(std::function<void()> main) : main_(std::move(main)) {
  // Pages are mapped when touched, and a guard page ends the stack.
  boost::context::protected_fixedsize_stack allocator(kStackBytes);
  auto stack = allocator.allocate();
  // Stacks begin at different cache lines of a page: at the same ones, the tops of all of them
  // would compete for one set of the first-level cache.
  static std::atomic<std::size_t> made{0};
  const std::size_t offset = made.fetch_add(1) * 5 % 61 * 64;
  stack_bytes_ = stack.size;
  stack_bottom_ = static_cast<char*>(stack.sp) - stack.size;
#ifdef __SANITIZE_ADDRESS__
  // Where an earlier stack was unmapped, what the sanitizer knew of its variables is still noted.
  __asan_unpoison_memory_region(stack_bottom_, stack_bytes_);
#endif
  fiber_ = boost::context::fiber(std::allocator_arg,
                                 boost::context::preallocated(static_cast<char*>(stack.sp) - offset,
                                                              stack.size - offset, stack),
                                 allocator, [this](boost::context::fiber&& caller) {
                                   run(std::move(caller));
                                   return std::move(caller_);
                                 });
#ifdef __SANITIZE_THREAD__
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef __SANITIZE_THREAD__
  __tsan_destroy_fiber(tsan_fiber_);
#endif
}

void Fiber::run(boost::context::fiber&& caller) {
  caller_ = std::move(caller);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &caller_bottom_, &caller_bytes_);
#endif
  main_();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, caller_bottom_, caller_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(tsan_caller_, 0);
#endif
}

void Fiber::resume() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&caller_fake_stack_, stack_bottom_, stack_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  tsan_caller_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, 0);
#endif
  fiber_ = std::move(fiber_).resume();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(caller_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, caller_bottom_, caller_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(tsan_caller_, 0);
#endif
  caller_ = std::move(caller_).resume();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_bottom_, &caller_bytes_);
#endif
}

}  // namespace millrace::cuda_emulator
