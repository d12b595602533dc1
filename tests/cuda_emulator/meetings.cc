// Barriers and collective operations: how threads of a block meet.
#include <fmt/format.h>

#include <bit>
#include <chrono>
#include <cstring>

#include "tests/cuda_emulator/scheduler.h"

namespace millrace::cuda_emulator {

// ---- warps and warpgroups ---------------------------------------------------------------------

void Scheduler::join(Meeting& meeting, const char* kind, void* record, std::size_t slot,
                     Where where) {
  if (meeting.arrived.empty()) {
    meeting.kind = kind;
    meeting.where = where;
    meeting.lanes = 0;
    std::fill(meeting.records.begin(), meeting.records.end(), nullptr);
  } else if (meeting.kind != kind && std::strcmp(meeting.kind, kind) != 0) {
    fail(fmt::format("calls {} (line {}) while others of its warp call {} (line {})", kind,
                     where.line(), meeting.kind, meeting.where.line()));
  }
  meeting.records[slot] = record;
  meeting.lanes |= 1U << (slot % 32);
  meeting.arrived.push_back(&thread());
}

void Scheduler::complete(Meeting& meeting) {
  meeting.combine(*this, meeting.records.data());
  for (Thread* t : meeting.arrived) {
    if (t != current_) wake(*t);
  }
  meeting.arrived.clear();
}

void Scheduler::meet_warp(std::uint32_t mask, const char* kind, void* record, Combine combine,
                          Where where) {
  const Thread& t = thread();
  if ((mask >> t.lane & 1U) == 0) {
    fail(fmt::format("{} (line {}): mask {:#x} leaves out its own lane {}", kind, where.line(),
                     mask, t.lane));
  }
  auto& meetings = warp_meetings_[t.warp];
  Meeting* found = nullptr;
  for (Meeting& m : meetings) {
    if (!m.arrived.empty() && m.mask == mask) found = &m;
  }
  for (Meeting& m : meetings) {
    if (found == nullptr && m.arrived.empty()) found = &m;
  }
  if (found == nullptr) found = &meetings.emplace_back();
  found->mask = mask;
  found->combine = combine;
  if (found->records.empty()) found->records.resize(32);
  join(*found, kind, record, t.lane, where);
  if (found->lanes == (mask & live_lanes_[t.warp])) {
    complete(*found);
  } else {
    wait(kind, where);
  }
}

void Scheduler::meet_warpgroup(const char* kind, void* record, Combine combine, Where where) {
  const Thread& t = thread();
  const unsigned group = t.warp / 4;
  check((group + 1) * 128 <= threads_.size(), "wgmma: a warpgroup has 128 threads");
  Meeting& meeting = warpgroup_meetings_[group];
  meeting.combine = combine;
  meeting.records.resize(128);
  join(meeting, kind, record, t.linear % 128, where);
  if (meeting.arrived.size() == 128) {
    complete(meeting);
  } else {
    wait(kind, where);
  }
}

// A thread ended: those that wait for the others of its warp or block may now be complete.
void Scheduler::recheck_meetings(unsigned warp) {
  for (Meeting& m : warp_meetings_[warp]) {
    if (!m.arrived.empty() && m.lanes == (m.mask & live_lanes_[warp])) complete(m);
  }
  if (!block_meeting_.arrived.empty() && block_meeting_.arrived.size() == live_) release_block();
}

// ---- the block --------------------------------------------------------------------------------

void Scheduler::release_block() {
  block_result_ = block_trues_;
  block_trues_ = 0;
  for (Thread* t : block_meeting_.arrived) {
    if (t != current_) wake(*t);
  }
  block_meeting_.arrived.clear();
}

int Scheduler::block_barrier(bool predicate, Where where) {
  Meeting& meeting = block_meeting_;
  if (meeting.arrived.empty()) {
    meeting.where = where;
  } else if (meeting.where.line() != where.line() ||
             (meeting.where.file_name() != where.file_name() &&
              std::strcmp(meeting.where.file_name(), where.file_name()) != 0)) {
    fail(fmt::format("is at the __syncthreads of {}:{} while others are at that of {}:{}",
                     where.file_name(), where.line(), meeting.where.file_name(),
                     meeting.where.line()));
  }
  meeting.arrived.push_back(&thread());
  block_trues_ += predicate ? 1 : 0;
  if (meeting.arrived.size() == live_) {
    release_block();
  } else {
    wait("__syncthreads", where);
  }
  return block_result_;
}

void Scheduler::named_barrier(int barrier, int threads, bool waits, Where where) {
  check(barrier >= 1 && barrier <= 15, "named barriers are 1 to 15");
  check(threads > 0 && threads % 32 == 0, "a named barrier takes whole warps");
  Barrier& b = barriers_[barrier];
  check(b.arrivals == 0 || b.threads == threads,
        "meets at a named barrier with another number of threads than the others");
  b.threads = threads;
  if (++b.arrivals == threads) {
    b.arrivals = 0;
    wake_all(b.waiting);
  } else if (waits) {
    b.waiting.push_back(&thread());
    wait("a named barrier", where);
  }
}

void sync_block(Where where) { Scheduler::of_this_thread().block_barrier(false, where); }

int sync_block_reduce(int operation, bool predicate, Where where) {
  // "and" counts the threads that object.
  const bool counted = operation == 1 ? !predicate : predicate;
  const int count = Scheduler::of_this_thread().block_barrier(counted, where);
  if (operation == 0) return count;
  return operation == 1 ? count == 0 : count != 0;
}

void trap(Where where) {
  Scheduler::of_this_thread().fail(fmt::format("__trap() at line {}", where.line()));
  std::abort();
}

void sleep(Where where) { Scheduler::of_this_thread().poll("__nanosleep", where); }

long long ticks() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

unsigned char* dynamic_smem() {
  Scheduler& s = Scheduler::of_this_thread();
  s.thread();
  return s.dynamic_smem();
}

}  // namespace millrace::cuda_emulator
