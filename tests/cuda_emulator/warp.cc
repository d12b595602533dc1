// The collective operations of a warp: each lane deposits what it gives, the last computes for all.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "tests/cuda_emulator/scheduler.h"

namespace millrace::cuda_emulator {

namespace {

struct ShuffleRecord {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

int shuffle_source(ShuffleKind kind, int lane, int argument, int width) {
  const int first = lane / width * width;
  switch (kind) {
    case ShuffleKind::kIndex:
      return first + (argument & (width - 1));
    case ShuffleKind::kUp:
      return lane - argument < first ? lane : lane - argument;
    case ShuffleKind::kDown:
      return lane + argument >= first + width ? lane : lane + argument;
    case ShuffleKind::kXor:
      break;
  }
  const int source = lane ^ argument;
  return source >= first + width ? lane : source;
}

template <class T>
void share(void* const* records, T value) {
  for (int lane = 0; lane < 32; ++lane) {
    if (records[lane] != nullptr) *static_cast<T*>(records[lane]) = value;
  }
}

}  // namespace

std::uint64_t shuffle(ShuffleKind kind, std::uint32_t mask, std::uint64_t value, int argument,
                      int width, Where where) {
  Scheduler& s = Scheduler::of_this_thread();
  s.check(width >= 1 && width <= 32 && std::has_single_bit(static_cast<unsigned>(width)),
          "the width of a shuffle is a power of two");
  const int lane = static_cast<int>(s.thread().lane);
  ShuffleRecord record{value, shuffle_source(kind, lane, argument, width), 0};
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                    "__shfl_xor_sync"};
  s.meet_warp(
      mask, kNames[static_cast<int>(kind)], &record,
      [](Scheduler& scheduler, void* const* records) {
        for (int l = 0; l < 32; ++l) {
          auto* r = static_cast<ShuffleRecord*>(records[l]);
          if (r == nullptr) continue;
          auto* source = static_cast<ShuffleRecord*>(records[r->source & 31]);
          if (source == nullptr) {
            scheduler.fail(
                fmt::format("lane {} shuffles from lane {}, which takes no part", l, r->source));
          }
          r->result = source->value;
        }
      },
      where);
  return record.result;
}

void sync_warp(std::uint32_t mask, Where where) {
  int none = 0;
  Scheduler::of_this_thread().meet_warp(
      mask, "__syncwarp", &none, [](Scheduler&, void* const*) {}, where);
}

std::uint32_t ballot(std::uint32_t mask, bool predicate, Where where) {
  std::uint32_t record = predicate ? 1 : 0;
  Scheduler::of_this_thread().meet_warp(
      mask, "__ballot_sync", &record,
      [](Scheduler&, void* const* records) {
        std::uint32_t bits = 0;
        for (int l = 0; l < 32; ++l) {
          if (records[l] != nullptr) bits |= *static_cast<std::uint32_t*>(records[l]) << l;
        }
        share(records, bits);
      },
      where);
  return record;
}

std::uint32_t match_any(std::uint32_t mask, std::uint64_t value, Where where) {
  ShuffleRecord record{value, 0, 0};
  Scheduler::of_this_thread().meet_warp(
      mask, "__match_any_sync", &record,
      [](Scheduler&, void* const* records) {
        for (int l = 0; l < 32; ++l) {
          auto* r = static_cast<ShuffleRecord*>(records[l]);
          for (int other = 0; r != nullptr && other < 32; ++other) {
            const auto* o = static_cast<const ShuffleRecord*>(records[other]);
            if (o != nullptr && o->value == r->value) r->result |= 1ULL << other;
          }
        }
      },
      where);
  return static_cast<std::uint32_t>(record.result);
}

namespace {

template <ReduceKind Kind>
std::uint32_t reduce_two(std::uint32_t a, std::uint32_t b) {
  const auto sa = static_cast<std::int32_t>(a);
  const auto sb = static_cast<std::int32_t>(b);
  switch (Kind) {
    case ReduceKind::kAdd:
      return a + b;
    case ReduceKind::kMinSigned:
      return static_cast<std::uint32_t>(std::min(sa, sb));
    case ReduceKind::kMaxSigned:
      return static_cast<std::uint32_t>(std::max(sa, sb));
    case ReduceKind::kMin:
      return std::min(a, b);
    case ReduceKind::kMax:
      return std::max(a, b);
    case ReduceKind::kAnd:
      return a & b;
    case ReduceKind::kOr:
      return a | b;
    case ReduceKind::kXor:
      return a ^ b;
  }
  return 0;
}

template <ReduceKind Kind>
std::uint32_t reduce_warp(std::uint32_t mask, std::uint32_t value, Where where) {
  std::uint32_t record = value;
  Scheduler::of_this_thread().meet_warp(
      mask, "__reduce_sync", &record,
      [](Scheduler&, void* const* records) {
        const std::uint32_t* total = nullptr;
        std::uint32_t sum = 0;
        for (int l = 0; l < 32; ++l) {
          const auto* r = static_cast<const std::uint32_t*>(records[l]);
          if (r == nullptr) continue;
          sum = total == nullptr ? *r : reduce_two<Kind>(sum, *r);
          total = r;
        }
        share(records, sum);
      },
      where);
  return record;
}

}  // namespace

std::uint32_t reduce(ReduceKind kind, std::uint32_t mask, std::uint32_t value, Where where) {
  switch (kind) {
    case ReduceKind::kAdd:
      return reduce_warp<ReduceKind::kAdd>(mask, value, where);
    case ReduceKind::kMinSigned:
      return reduce_warp<ReduceKind::kMinSigned>(mask, value, where);
    case ReduceKind::kMaxSigned:
      return reduce_warp<ReduceKind::kMaxSigned>(mask, value, where);
    case ReduceKind::kMin:
      return reduce_warp<ReduceKind::kMin>(mask, value, where);
    case ReduceKind::kMax:
      return reduce_warp<ReduceKind::kMax>(mask, value, where);
    case ReduceKind::kAnd:
      return reduce_warp<ReduceKind::kAnd>(mask, value, where);
    case ReduceKind::kOr:
      return reduce_warp<ReduceKind::kOr>(mask, value, where);
    case ReduceKind::kXor:
      return reduce_warp<ReduceKind::kXor>(mask, value, where);
  }
  return 0;
}

}  // namespace millrace::cuda_emulator
