// Part of the emulated cuda_runtime.h: arithmetic, bits, memory accesses and atomics of CUDA C++.
#pragma once

#include <cuda_runtime.h>

// ---- integers ---------------------------------------------------------------------------------

#define MILLRACE_MIN_MAX(type)                                 \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
MILLRACE_MIN_MAX(int)
MILLRACE_MIN_MAX(unsigned)
MILLRACE_MIN_MAX(long)
MILLRACE_MIN_MAX(unsigned long)
MILLRACE_MIN_MAX(long long)
MILLRACE_MIN_MAX(unsigned long long)
#undef MILLRACE_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

constexpr int __popc(unsigned v) { return std::popcount(v); }
constexpr int __popcll(unsigned long long v) { return std::popcount(v); }
constexpr int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
constexpr int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
constexpr int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
constexpr unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
constexpr unsigned __brev(unsigned v) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (v >> i & 1U) << (31 - i);
  return out;
}
constexpr unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = x | static_cast<std::uint64_t>(y) << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 15U;
    auto byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7U)) & 0xffU);
    if ((nibble & 8U) != 0) byte = (byte & 0x80U) != 0 ? 0xff : 0;  // the sign, replicated
    out |= byte << (8 * i);
  }
  return out;
}
constexpr unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((lo | static_cast<std::uint64_t>(hi) << 32) >> (shift & 31U));
}
constexpr unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((lo | static_cast<std::uint64_t>(hi) << 32) << (shift & 31U) >> 32);
}

// ---- floats -----------------------------------------------------------------------------------
// The device's expf, logf, sinf, ... differ from the host's in the last bits, and nvcc contracts a
// multiply and an add to an FMA where this build does not: bits are compared within one build only.

constexpr unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
constexpr int __float_as_int(float v) { return std::bit_cast<int>(v); }
constexpr float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
constexpr float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float rsqrtf(float v) { return 1.0F / std::sqrt(v); }
inline float __frsqrt_rn(float v) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v)));
}
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __frcp_rn(float v) { return 1.0F / v; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float v) { return v > 0.0F ? std::fmin(v, 1.0F) : 0.0F; }
inline int __float2int_rn(float v) { return static_cast<int>(std::nearbyint(v)); }
inline int __float2int_rd(float v) { return static_cast<int>(std::floor(v)); }
inline int __float2int_rz(float v) { return static_cast<int>(v); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }

// ---- memory -----------------------------------------------------------------------------------

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).fetch_add(v);
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).fetch_sub(v);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).exchange(v);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, v);
  return expected;
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).fetch_or(v);
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).fetch_and(v);
}
namespace millrace::cuda_emulator {
template <class T, class Update>
T atomic_update(T* p, Update&& update) {
  std::atomic_ref<T> value(*p);
  T old = value.load();
  while (!value.compare_exchange_weak(old, update(old))) {
  }
  return old;
}
}  // namespace millrace::cuda_emulator
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return millrace::cuda_emulator::atomic_update(p, [v](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return millrace::cuda_emulator::atomic_update(p, [v](T old) { return v < old ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return millrace::cuda_emulator::atomic_update(
      p, [limit](unsigned old) { return old >= limit ? 0U : old + 1U; });
}
inline unsigned atomicDec(unsigned* p, unsigned limit) {
  return millrace::cuda_emulator::atomic_update(
      p, [limit](unsigned old) { return old == 0U || old > limit ? limit : old - 1U; });
}
