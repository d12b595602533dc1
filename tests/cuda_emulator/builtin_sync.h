// Part of the emulated cuda_runtime.h: barriers and the collective operations of a warp. Places of
// calls travel along for error messages.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace millrace::cuda_emulator {

using Where = std::source_location;

void sync_block(Where where);
// -1 none, otherwise what __syncthreads_count, _and, _or want: 0 count, 1 and, 2 or.
int sync_block_reduce(int operation, bool predicate, Where where);
void sync_warp(std::uint32_t mask, Where where);

enum class ShuffleKind { kIndex, kUp, kDown, kXor };
std::uint64_t shuffle(ShuffleKind kind, std::uint32_t mask, std::uint64_t value, int argument,
                      int width, Where where);
std::uint32_t ballot(std::uint32_t mask, bool predicate, Where where);
std::uint32_t match_any(std::uint32_t mask, std::uint64_t value, Where where);

enum class ReduceKind { kAdd, kMinSigned, kMaxSigned, kMin, kMax, kAnd, kOr, kXor };
std::uint32_t reduce(ReduceKind kind, std::uint32_t mask, std::uint32_t value, Where where);

[[noreturn]] void trap(Where where);
void sleep(Where where);
long long ticks();

template <class T>
T shuffle_value(ShuffleKind kind, std::uint32_t mask, T value, int argument, int width,
                Where where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(kind, mask, bits, argument, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace millrace::cuda_emulator

#define MILLRACE_WHERE std::source_location where = std::source_location::current()

inline void __syncthreads(MILLRACE_WHERE) { millrace::cuda_emulator::sync_block(where); }
inline int __syncthreads_count(int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::sync_block_reduce(0, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::sync_block_reduce(1, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::sync_block_reduce(2, predicate != 0, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffU, MILLRACE_WHERE) {
  millrace::cuda_emulator::sync_warp(mask, where);
}

template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, MILLRACE_WHERE) {
  using enum millrace::cuda_emulator::ShuffleKind;
  return millrace::cuda_emulator::shuffle_value(kIndex, mask, v, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, MILLRACE_WHERE) {
  using enum millrace::cuda_emulator::ShuffleKind;
  return millrace::cuda_emulator::shuffle_value(kUp, mask, v, static_cast<int>(delta), width,
                                                where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, MILLRACE_WHERE) {
  using enum millrace::cuda_emulator::ShuffleKind;
  return millrace::cuda_emulator::shuffle_value(kDown, mask, v, static_cast<int>(delta), width,
                                                where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, MILLRACE_WHERE) {
  using enum millrace::cuda_emulator::ShuffleKind;
  return millrace::cuda_emulator::shuffle_value(kXor, mask, v, lane_mask, width, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::ballot(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MILLRACE_WHERE) {
  return millrace::cuda_emulator::ballot(mask, predicate == 0, where) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v, MILLRACE_WHERE) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return millrace::cuda_emulator::match_any(mask, bits, where);
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kAdd, mask, v, where);
}
inline int __reduce_add_sync(unsigned mask, int v, MILLRACE_WHERE) {
  return static_cast<int>(millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kAdd,
                                                          mask, static_cast<unsigned>(v), where));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kMin, mask, v, where);
}
inline int __reduce_min_sync(unsigned mask, int v, MILLRACE_WHERE) {
  return static_cast<int>(millrace::cuda_emulator::reduce(
      millrace::cuda_emulator::ReduceKind::kMinSigned, mask, static_cast<unsigned>(v), where));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kMax, mask, v, where);
}
inline int __reduce_max_sync(unsigned mask, int v, MILLRACE_WHERE) {
  return static_cast<int>(millrace::cuda_emulator::reduce(
      millrace::cuda_emulator::ReduceKind::kMaxSigned, mask, static_cast<unsigned>(v), where));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kAnd, mask, v, where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kOr, mask, v, where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v, MILLRACE_WHERE) {
  return millrace::cuda_emulator::reduce(millrace::cuda_emulator::ReduceKind::kXor, mask, v, where);
}

[[noreturn]] inline void __trap(MILLRACE_WHERE) { millrace::cuda_emulator::trap(where); }
inline void __nanosleep(unsigned, MILLRACE_WHERE) { millrace::cuda_emulator::sleep(where); }
inline long long clock64() { return millrace::cuda_emulator::ticks(); }

#undef MILLRACE_WHERE
