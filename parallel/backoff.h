// How a waiting rank gives up its core: spin, then yield, then sleep for growing times.
//
// Cells are tested, and small ones served, with more ranks than cores; a rank that only spins would
// take the core its peer needs. Spinning 20 us covers a peer that is about to answer, yielding
// covers one that waits for a core. A sleep is an eighth of the time waited so far, so it adds
// little to the wait, and capped, so that an idle rank costs below 2 % of a core and still answers
// soon.
#pragma once

#include <chrono>

namespace millrace::parallel {

struct BackoffPolicy {
  std::chrono::microseconds spin{20};          // test again at once
  std::chrono::microseconds yield{200};        // then sched_yield between tests
  std::chrono::microseconds sleep_min{50};     // then sleep
  std::chrono::microseconds sleep_max{500};    // at most, in a wait younger than idle_after
  std::chrono::milliseconds idle_after{100};   // from here on nothing is expected soon,
  std::chrono::microseconds sleep_idle{2000};  // and sleeps are as long as this
};

// One wait. next() says what to do before testing again: zero means test at once (it has already
// spun or yielded), otherwise sleep for the returned time. Not thread-safe.
class Backoff {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Backoff(const BackoffPolicy& policy) : policy_(&policy), start_(Clock::now()) {}

  std::chrono::microseconds next();
  void pause();                                             // next(), and sleeps
  Clock::duration waited() const { return now_ - start_; }  // as of the last next()

 private:
  const BackoffPolicy* policy_;
  Clock::time_point start_;
  Clock::time_point now_ = start_;
};

}  // namespace millrace::parallel
