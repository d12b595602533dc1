// Runs the threads of one block as fibers on the calling OS thread, block after block. Every OS
// thread has a scheduler of its own, so several may run kernels at once.
//
// A thread runs until it waits for others; nothing else interrupts it. Copies and multiplications
// that the hardware does in the background are held back as long as any thread can run, so that a
// forgotten wait reads poisoned memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/cuda_emulator/control.h"
#include "tests/cuda_emulator/fiber.h"

namespace millrace::cuda_emulator {

using Where = std::source_location;

// What 0xff bytes are: NaN as f32, bf16, f16 and e4m3, -1 as an index.
inline constexpr int kPoison = 0xff;

struct CopyOperation {  // cp.async
  void* to;
  const void* from;  // null: zeros
};

struct WgmmaOperation {
  int n = 0;
  bool trans_a = false;
  bool trans_b = false;
  bool accumulate = false;
  bool a_in_registers = false;
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::uint32_t a_registers[4] = {};
  float* d = nullptr;
};

// The operations of a thread that are not done yet, oldest first. Those before ends[i] are of
// groups 0 to i; those after the last end are of the group being made.
template <class Operation>
struct Pending {
  std::vector<Operation> operations;
  std::vector<std::size_t> ends;

  bool empty() const { return operations.empty(); }
  void commit() { ends.push_back(operations.size()); }
  // How many operations the groups hold that are older than the newest `kept` groups.
  std::size_t due(int kept) const {
    const auto keep = static_cast<std::size_t>(kept);
    return ends.size() > keep ? ends[ends.size() - keep - 1] : 0;
  }
  void retire(int kept) {
    const std::size_t done = due(kept);
    operations.erase(operations.begin(), operations.begin() + static_cast<std::ptrdiff_t>(done));
    if (ends.size() > static_cast<std::size_t>(kept)) ends.erase(ends.begin(), ends.end() - kept);
    for (std::size_t& end : ends) end -= done;
  }
  void clear() {
    operations.clear();
    ends.clear();
  }
};

struct Worker;

struct Thread {
  uint3 index{};
  unsigned linear = 0;
  unsigned warp = 0;
  unsigned lane = 0;
  bool finished = false;
  Worker* worker = nullptr;  // while started and unfinished
  // What it waits for, for the report of a deadlock; null while it runs.
  const char* waiting_for = nullptr;
  Where where;
  Pending<CopyOperation> copies;
  Pending<WgmmaOperation> products;
  bool wgmma_fenced = false;
};

struct Worker {
  std::unique_ptr<Fiber> fiber;
  Thread* thread = nullptr;
};

// A meeting of threads: all deposit a record, the last to come combines them, then all go on.
struct Meeting {
  std::uint32_t mask = 0;   // lanes of a warp that are to come; unused by warpgroups and barriers
  std::uint32_t lanes = 0;  // that came
  const char* kind = nullptr;
  Where where;
  void (*combine)(class Scheduler&, void* const* records) = nullptr;
  std::vector<Thread*> arrived;  // empty: nobody meets
  std::vector<void*> records;    // by lane, or by thread of the warpgroup; null where none came
};

struct Barrier {  // bar.sync
  int threads = 0;
  int arrivals = 0;
  std::vector<Thread*> waiting;
};

struct MBarrier {
  std::uint64_t* address = nullptr;
  std::uint32_t count = 0;
  std::uint32_t pending = 0;
  std::int64_t bytes = 0;  // expected minus arrived
  std::uint32_t phase = 0;
  std::vector<Thread*> waiting;
};

struct BulkCopy {
  std::uint64_t* barrier = nullptr;
  std::uint32_t bytes = 0;
  std::function<void()> run;
};

class Scheduler {
 public:
  // Of the calling OS thread.
  static Scheduler& of_this_thread() { return known_ != nullptr ? *known_ : make(); }
  ~Scheduler();

  // Runs `body` once for each thread of each block. Throws KernelError when the kernel breaks a
  // rule.
  void run_grid(const std::string& kernel, dim3 grid, dim3 block, std::size_t smem_bytes,
                const std::function<void()>& body);

  // ---- for the primitives; the caller is a running CUDA thread ----------------------------------

  Thread& thread() {
    if (current_ == nullptr) outside();
    return *current_;
  }
  [[noreturn]] void fail(const std::string& message);
  void check(bool condition, const char* message) {
    if (!condition) fail(message);
  }
  // Suspends the thread until wake().
  void wait(const char* what, Where where);
  void wake(Thread& thread) { ready_.push_back(&thread); }
  void wake_all(std::vector<Thread*>& threads);
  // Suspends the thread until all others had their turn.
  void poll(const char* what, Where where);
  // Something changed that a polling thread may have waited for.
  void progress() { idle_polls_ = 0; }

  // The lanes of `mask` that have not ended meet; combine(records) by the last one.
  using Combine = void (*)(Scheduler&, void* const* records);
  void meet_warp(std::uint32_t mask, const char* kind, void* record, Combine combine, Where where);
  void meet_warpgroup(const char* kind, void* record, Combine combine, Where where);
  // Returns for how many threads `predicate` was true.
  int block_barrier(bool predicate, Where where);
  void named_barrier(int barrier, int threads, bool waits, Where where);
  std::uint32_t live_lanes(unsigned warp) const { return live_lanes_[warp]; }

  MBarrier& mbarrier(std::uint64_t* address);
  MBarrier& new_mbarrier(std::uint64_t* address);
  void settle(MBarrier& barrier);  // begins the next phase when this one is complete
  void add_bulk_copy(BulkCopy copy) { bulk_.push_back(std::move(copy)); }

  unsigned char* dynamic_smem() const { return smem_; }
  std::size_t dynamic_smem_bytes() const { return smem_bytes_; }

 private:
  static Scheduler& make();
  void run_block(const std::function<void()>& body);
  void reset_block();
  bool step();
  void enter(Worker& worker);
  void work(Worker& worker);
  Thread* next_thread();
  void finish(Thread& thread);
  void recheck_meetings(unsigned warp);
  void join(Meeting& meeting, const char* kind, void* record, std::size_t slot, Where where);
  void complete(Meeting& meeting);
  void release_block();
  bool run_bulk_copy();
  void abort_block();
  void check_block_end();
  std::string deadlock_report() const;
  std::string place() const;
  [[noreturn]] static void outside();
  std::vector<unsigned> order(std::size_t count);

  static inline constinit thread_local Scheduler* known_ = nullptr;

  const std::function<void()>* body_ = nullptr;
  std::string kernel_;
  std::vector<Thread> threads_;
  std::vector<unsigned> start_order_;
  std::size_t next_ = 0;
  std::size_t live_ = 0;
  std::deque<Thread*> ready_;
  std::deque<Thread*> polling_;
  std::size_t idle_polls_ = 0;  // polls since something last happened
  Thread* current_ = nullptr;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
  std::exception_ptr error_;
  bool aborting_ = false;
  bool stopping_ = false;

  std::vector<std::uint32_t> live_lanes_;
  std::vector<std::vector<Meeting>> warp_meetings_;
  std::vector<Meeting> warpgroup_meetings_;
  Meeting block_meeting_;
  int block_trues_ = 0;
  int block_result_ = 0;
  Barrier barriers_[16];
  std::deque<MBarrier> mbarriers_;
  std::deque<BulkCopy> bulk_;

  unsigned char* smem_ = nullptr;
  std::size_t smem_bytes_ = 0;
  std::unique_ptr<unsigned char, void (*)(void*)> smem_memory_{nullptr, nullptr};
  std::uint64_t random_ = 0;
};

}  // namespace millrace::cuda_emulator
