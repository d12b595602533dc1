#include "kernels/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "config/check.h"

namespace millrace::kernels {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct Job {
  ThreadPool::RangeFn fn = nullptr;
  void* argument = nullptr;
  std::int64_t count = 0;
  int parts = 0;
};

void run_part(const Job& job, int part) {
  const std::int64_t begin = job.count * part / job.parts;
  const std::int64_t end = job.count * (part + 1) / job.parts;
  if (begin < end) job.fn(job.argument, begin, end);
}

// Waits until `word` differs from `old`: a bounded spin, then sleep (a futex on Linux).
std::uint32_t wait_change(const std::atomic<std::uint32_t>& word, std::uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    const std::uint32_t now = word.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  word.wait(old, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::State {
  Job job;                                 // written by the caller before `epoch` moves
  std::atomic<std::uint32_t> epoch{0};     // one more per job
  std::atomic<std::uint32_t> finished{0};  // workers done with the current job
  std::atomic<bool> stop{false};
  std::atomic<bool> busy{false};  // catches nested or concurrent use
  int spins = 0;
  std::vector<std::thread> workers;

  void work(int part) {
    std::uint32_t seen = 0;
    while (true) {
      std::uint32_t now = wait_change(epoch, seen, spins);
      while (now == seen) now = wait_change(epoch, seen, 0);  // woken without a change
      seen = now;
      if (stop.load(std::memory_order_acquire)) return;
      if (part < job.parts) run_part(job, part);
      finished.fetch_add(1, std::memory_order_acq_rel);
      finished.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads, int spins, std::function<void(int)> on_start)
    : threads_(threads) {
  CHECK(threads >= 1 && spins >= 0, "threads={} spins={}", threads, spins);
  if (on_start) on_start(0);
  if (threads == 1) return;
  state_ = std::make_unique<State>();
  state_->spins = spins;
  for (int part = 1; part < threads; ++part) {
    state_->workers.emplace_back([s = state_.get(), part, on_start] {
      if (on_start) on_start(part);
      s->work(part);
    });
  }
}

ThreadPool::~ThreadPool() {
  if (state_ == nullptr) return;
  state_->stop.store(true, std::memory_order_release);
  state_->epoch.fetch_add(1, std::memory_order_acq_rel);
  state_->epoch.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::run(std::int64_t count, std::int64_t grain, RangeFn fn, void* argument) {
  if (count <= 0) return;
  const std::int64_t worth = std::max<std::int64_t>(1, count / std::max<std::int64_t>(1, grain));
  const int parts = static_cast<int>(std::min<std::int64_t>(threads_, worth));
  if (parts == 1) return fn(argument, 0, count);

  State& s = *state_;
  CHECK(!s.busy.exchange(true, std::memory_order_acquire), "parallel_for inside parallel_for");
  s.job = {fn, argument, count, parts};
  s.finished.store(0, std::memory_order_relaxed);
  s.epoch.fetch_add(1, std::memory_order_release);
  s.epoch.notify_all();
  run_part(s.job, 0);
  // Every worker reports, also one without a part: the next job may not be written before that.
  const auto all = static_cast<std::uint32_t>(threads_ - 1);
  std::uint32_t done = s.finished.load(std::memory_order_acquire);
  while (done != all) done = wait_change(s.finished, done, s.spins);
  s.busy.store(false, std::memory_order_release);
}

}  // namespace millrace::kernels
