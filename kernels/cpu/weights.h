// Reading weights inside the CPU kernels.
#pragma once

#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {

// Values [begin, begin + count) of a row that starts at `row`, as f32. `begin` is a multiple of 256
// or 0; `count` ends on a block of the dtype.
void convert_row(DType dtype, const std::byte* row, std::int64_t begin, std::int64_t count,
                 float* out);

// Row `row` of a weight of any type, packed ones among them. Uses the thread's scratch.
void convert_weight_row(const WeightView& w, std::int64_t row, float* out);

// How the dot products of gemm read a plain dtype straight from the mapped file.
struct LoadF32 {
  using Value = float;
  MILLRACE_ALWAYS_INLINE static Part part(const Value* p) { return part_load(p); }
  MILLRACE_ALWAYS_INLINE static float one(const Value* p) {
    float v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
};
struct LoadBf16 {
  using Value = std::uint16_t;
  MILLRACE_ALWAYS_INLINE static Part part(const Value* p) { return part_load_bf16(p); }
  MILLRACE_ALWAYS_INLINE static float one(const Value* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bf16_to_f32(bits);
  }
};
struct LoadF16 {
  using Value = std::uint16_t;
  MILLRACE_ALWAYS_INLINE static Part part(const Value* p) { return part_load_f16(p); }
  MILLRACE_ALWAYS_INLINE static float one(const Value* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return f16_to_f32(bits);
#endif
  }
};

template <class Loader>
MILLRACE_ALWAYS_INLINE Vec load_as(const typename Loader::Value* p) {
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) out.part[i] = Loader::part(p + i * kPartLanes);
  return out;
}

// The first n lanes, the others zero; memory beyond is not touched (a row may end a mapped file).
template <class Loader>
MILLRACE_ALWAYS_INLINE Vec load_as_n(const typename Loader::Value* p, std::int64_t n) {
  alignas(64) float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = Loader::one(p + i);
  return load(lanes);
}

}  // namespace millrace::kernels::MILLRACE_ISA
