#include "parallel/backoff.h"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace millrace::parallel {

std::chrono::microseconds Backoff::next() {
  now_ = Clock::now();
  const auto waited = now_ - start_;
  if (waited < policy_->spin) return std::chrono::microseconds::zero();
  if (waited < policy_->spin + policy_->yield) {
    sched_yield();
    return std::chrono::microseconds::zero();
  }
  if (waited >= policy_->idle_after) return policy_->sleep_idle;
  const auto eighth = std::chrono::duration_cast<std::chrono::microseconds>(waited / 8);
  return std::clamp(eighth, policy_->sleep_min, policy_->sleep_max);
}

void Backoff::pause() {
  const auto time = next();
  if (time.count() > 0) std::this_thread::sleep_for(time);
}

}  // namespace millrace::parallel
