// One suspended flow of control with a stack of its own: a CUDA thread of the emulator.
#pragma once

#include <boost/context/fiber.hpp>
#include <functional>

namespace millrace::cuda_emulator {

// Used by one OS thread only. resume() is called by that thread's scheduler, suspend() from inside.
class Fiber {
 public:
  explicit Fiber(std::function<void()> main);
  ~Fiber();  // main must have returned
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs until the fiber suspends itself or main returns.
  void resume();
  void suspend();
  bool finished() const { return !fiber_; }

 private:
  void run(boost::context::fiber&& caller);

  std::function<void()> main_;
  boost::context::fiber fiber_;
  boost::context::fiber caller_;
  // What the sanitizers must be told of a change of stack; unused in other builds.
  const void* stack_bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
  const void* caller_bottom_ = nullptr;
  std::size_t caller_bytes_ = 0;
  void* fake_stack_ = nullptr;
  void* caller_fake_stack_ = nullptr;
  void* tsan_fiber_ = nullptr;
  void* tsan_caller_ = nullptr;
};

}  // namespace millrace::cuda_emulator
