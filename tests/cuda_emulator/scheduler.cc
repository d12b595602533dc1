#include "tests/cuda_emulator/scheduler.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <numeric>
#include <utility>

namespace millrace::cuda_emulator {
namespace {

struct Abort {};  // unwinds the other threads of a block that failed

// Past the end of dynamic shared memory; a kernel that writes there is found out.
constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;

std::string file_line(const Where& where) {
  const std::string_view path = where.file_name();
  return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), where.line());
}

}  // namespace

Scheduler& Scheduler::make() {
  thread_local Scheduler scheduler;
  known_ = &scheduler;
  return scheduler;
}

Scheduler::~Scheduler() {
  known_ = nullptr;
  stopping_ = true;
  for (const auto& worker : workers_) worker->fiber->resume();  // all are idle; their mains return
}

void Scheduler::outside() { throw KernelError("a device function was called outside of a kernel"); }

std::string Scheduler::place() const {
  return fmt::format("{}, block ({}, {}, {})", kernel_, blockIdx.x, blockIdx.y, blockIdx.z);
}

void Scheduler::fail(const std::string& message) {
  const Thread& t = thread();
  throw KernelError(fmt::format("{}, thread ({}, {}, {}): {}", place(), t.index.x, t.index.y,
                                t.index.z, message));
}

// ---- grids and blocks -------------------------------------------------------------------------

void Scheduler::run_grid(const std::string& kernel, dim3 grid, dim3 block, std::size_t smem_bytes,
                         const std::function<void()>& body) {
  if (current_ != nullptr) throw KernelError("a kernel was launched from a kernel");
  kernel_ = kernel;
  random_ = order_seed();
  smem_bytes_ = smem_bytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, smem_bytes + kGuardBytes) != 0) throw std::bad_alloc();
  smem_memory_ = {static_cast<unsigned char*>(memory), [](void* p) { std::free(p); }};
  smem_ = smem_memory_.get();

  const unsigned count = block.x * block.y * block.z;
  threads_.assign(count, Thread{});
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = threads_[i];
    t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    t.linear = i;
    t.warp = i / 32;
    t.lane = i % 32;
  }
  gridDim = grid;
  blockDim = block;
  const auto blocks = static_cast<std::size_t>(grid.x) * grid.y * grid.z;
  start_order_ = order(count);
  const auto block_order = order(blocks);
  for (const std::size_t b : block_order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    if (cuda_emulator::order() == Order::kShuffled) start_order_ = order(count);
    run_block(body);
  }
}

std::vector<unsigned> Scheduler::order(std::size_t count) {
  std::vector<unsigned> out(count);
  std::iota(out.begin(), out.end(), 0U);
  if (cuda_emulator::order() == Order::kReverse) std::reverse(out.begin(), out.end());
  if (cuda_emulator::order() == Order::kShuffled) {
    for (std::size_t i = count; i > 1; --i) {
      random_ = random_ * 6364136223846793005U + 1442695040888963407U;
      std::swap(out[i - 1], out[(random_ >> 33) % i]);
    }
  }
  return out;
}

void Scheduler::reset_block() {
  std::memset(smem_, kPoison, smem_bytes_);
  std::memset(smem_ + smem_bytes_, kGuard, kGuardBytes);
  const std::size_t warps = (threads_.size() + 31) / 32;
  live_lanes_.assign(warps, 0);
  for (Thread& t : threads_) {
    t.finished = false;
    t.wgmma_fenced = false;
    t.copies.clear();
    t.products.clear();
    live_lanes_[t.warp] |= 1U << t.lane;
  }
  warp_meetings_.resize(warps);
  for (auto& meetings : warp_meetings_) meetings.clear();
  warpgroup_meetings_.assign((warps + 3) / 4, {});
  block_meeting_.arrived.clear();
  block_trues_ = 0;
  for (Barrier& barrier : barriers_) barrier = {};
  mbarriers_.clear();
  bulk_.clear();
  ready_.clear();
  polling_.clear();
  idle_polls_ = 0;
  error_ = nullptr;
  aborting_ = false;
  next_ = 0;
  live_ = threads_.size();
}

void Scheduler::run_block(const std::function<void()>& body) {
  reset_block();
  body_ = &body;
  while (live_ > 0 && error_ == nullptr && step()) {
  }
  if (error_ == nullptr && live_ > 0) {
    error_ = std::make_exception_ptr(KernelError(deadlock_report()));
  }
  if (error_ != nullptr) abort_block();
  check_block_end();
}

// Lets one thread run until it waits. False when none can.
bool Scheduler::step() {
  if (!ready_.empty()) {
    Thread* t = ready_.front();
    ready_.pop_front();
    idle_polls_ = 0;
    enter(*t->worker);
    return true;
  }
  if (next_ < threads_.size()) {
    if (idle_.empty()) {
      auto worker = std::make_unique<Worker>();
      Worker* w = worker.get();
      worker->fiber = std::make_unique<Fiber>([this, w] { work(*w); });
      workers_.push_back(std::move(worker));
      idle_.push_back(w);
    }
    Worker* worker = idle_.back();
    idle_.pop_back();
    idle_polls_ = 0;
    enter(*worker);
    return true;
  }
  if (run_bulk_copy()) {
    idle_polls_ = 0;
    return true;
  }
  // Threads that poll, once more each: when nothing has happened since all of them looked, nothing
  // ever will.
  if (polling_.empty() || idle_polls_ > polling_.size()) return false;
  Thread* t = polling_.front();
  polling_.pop_front();
  ++idle_polls_;
  enter(*t->worker);
  return true;
}

void Scheduler::enter(Worker& worker) {
  current_ = worker.thread;
  if (current_ != nullptr) {
    threadIdx = current_->index;
    current_->waiting_for = nullptr;
  }
  worker.fiber->resume();
  current_ = nullptr;
}

// The main function of a fiber: takes threads of the block that have not started, one after
// another, so that a kernel without waits needs one fiber and no switches.
void Scheduler::work(Worker& worker) {
  while (!stopping_) {
    while (Thread* t = next_thread()) {
      worker.thread = current_ = t;
      t->worker = &worker;
      threadIdx = t->index;
      try {
        (*body_)();
        finish(*t);
      } catch (const Abort&) {
      } catch (...) {
        if (error_ == nullptr) error_ = std::current_exception();
      }
      t->worker = nullptr;
      worker.thread = current_ = nullptr;
    }
    idle_.push_back(&worker);
    worker.fiber->suspend();
  }
}

Thread* Scheduler::next_thread() {
  if (stopping_ || error_ != nullptr || next_ >= threads_.size()) return nullptr;
  // A thread that others wait on goes first.
  if (!ready_.empty()) return nullptr;
  return &threads_[start_order_[next_++]];
}

void Scheduler::finish(Thread& thread) {
  check(thread.products.empty(), "ended with wgmma operations that it never waited for");
  progress();
  thread.finished = true;
  --live_;
  live_lanes_[thread.warp] &= ~(1U << thread.lane);
  recheck_meetings(thread.warp);
}

void Scheduler::abort_block() {
  aborting_ = true;
  for (Thread& t : threads_) {
    if (t.worker != nullptr) enter(*t.worker);  // its wait throws Abort
  }
  std::rethrow_exception(std::exchange(error_, nullptr));
}

void Scheduler::check_block_end() {
  for (std::size_t i = 0; i < kGuardBytes; ++i) {
    if (smem_[smem_bytes_ + i] != kGuard) {
      throw KernelError(fmt::format("{}: wrote beyond its {} bytes of dynamic shared memory",
                                    place(), smem_bytes_));
    }
  }
  if (!bulk_.empty()) {
    throw KernelError(
        fmt::format("{}: ended with {} bulk copies into shared memory that nobody waited for",
                    place(), bulk_.size()));
  }
}

bool Scheduler::run_bulk_copy() {
  if (bulk_.empty()) return false;
  std::size_t i = 0;
  if (cuda_emulator::order() == Order::kReverse) i = bulk_.size() - 1;
  if (cuda_emulator::order() == Order::kShuffled) {
    random_ = random_ * 6364136223846793005U + 1442695040888963407U;
    i = (random_ >> 33) % bulk_.size();
  }
  const BulkCopy copy = std::move(bulk_[i]);
  bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(i));
  copy.run();
  for (MBarrier& barrier : mbarriers_) {
    if (barrier.address != copy.barrier) continue;
    barrier.bytes -= copy.bytes;
    settle(barrier);
  }
  return true;
}

// ---- waiting ----------------------------------------------------------------------------------

void Scheduler::wait(const char* what, Where where) {
  Thread& t = thread();
  t.waiting_for = what;
  t.where = where;
  t.worker->fiber->suspend();
  if (aborting_) throw Abort{};
}

void Scheduler::poll(const char* what, Where where) {
  polling_.push_back(&thread());
  wait(what, where);
}

void Scheduler::wake_all(std::vector<Thread*>& threads) {
  ready_.insert(ready_.end(), threads.begin(), threads.end());
  threads.clear();
}

std::string Scheduler::deadlock_report() const {
  std::map<std::string, int> waits;
  for (const Thread& t : threads_) {
    if (t.worker == nullptr) continue;
    ++waits[fmt::format("{} at {}", t.waiting_for == nullptr ? "?" : t.waiting_for,
                        file_line(t.where))];
  }
  std::string text = fmt::format("{}: deadlock: {} of {} threads have ended", place(),
                                 threads_.size() - live_, threads_.size());
  for (const auto& [wait, count] : waits) text += fmt::format(", {} wait for {}", count, wait);
  return text;
}

}  // namespace millrace::cuda_emulator
