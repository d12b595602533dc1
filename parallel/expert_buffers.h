// The memory of ExpertExchange, shared by expert_parallel.cc and expert_messages.cc only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "parallel/expert_parallel.h"

namespace millrace::parallel {

// Uninitialised on purpose (kernels::Buffer clears): the worst case is far above what a step uses,
// and pages never touched stay out of memory.
class LazyBuffer {
 public:
  LazyBuffer() = default;
  explicit LazyBuffer(std::size_t bytes) : bytes_((bytes + 63) / 64 * 64) {
    if (bytes_ == 0) return;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes_)));
    if (!memory_) throw std::bad_alloc();
  }

  std::byte* data() { return memory_.get(); }
  float* floats() { return reinterpret_cast<float*>(memory_.get()); }
  std::span<std::byte> span() { return {memory_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_ = 0;
};

// Between dispatch and combine this is the state of the step; otherwise only capacity.
struct ExpertExchange::Buffers {
  // Messages.
  LazyBuffer records_out;                            // by destination lane
  LazyBuffer records_in;                             // by source lane
  LazyBuffer rows_out;                               // expert outputs by source lane of their token
  LazyBuffer rows_in;                                // [T * K, D] at most: by expert lane
  std::vector<ByteRange> out_ranges, in_ranges;      // by peer, of records
  std::vector<std::uint64_t> out_counts, in_counts;  // by peer, records
  // My tokens.
  DispatchPath path = DispatchPath::kLocal;
  std::int64_t tokens = 0;
  std::int64_t bucket = 0;
  bool dispatched = false;
  std::vector<std::int64_t> pairs_out;  // by expert lane: (token, k) pairs I sent there
  std::vector<std::int32_t> pair_lane;  // [T, K]: expert lane of the pair
  std::vector<std::int32_t> rows_of;    // [T, K]: row of rows_in (kLocal: of y) of the pair
  // The pairs my experts compute, in arrival order: source lane, token, k.
  std::vector<std::int64_t> pairs_in;     // by source lane
  std::vector<std::int32_t> pair_record;  // row of Received::x
  std::vector<std::int32_t> pair_slot;    // expert slot
  std::vector<std::int32_t> pair_output;  // kAllGather: source lane, token, k as one row index
  std::vector<std::int32_t> pair_row;     // grouped row
  std::int64_t pairs = 0;
  // Grouped by slot.
  std::vector<std::int64_t> offsets;  // [slots + 1]
  std::vector<std::int64_t> cursors;  // [max(slots, lanes)]
  std::vector<std::int32_t> x_rows;   // [R]
};

}  // namespace millrace::parallel
