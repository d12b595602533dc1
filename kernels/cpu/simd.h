// Sixteen floats at a time, on whatever registers the set has: one zmm, two ymm, or four vectors of
// the compiler. An operation on lane j is the same IEEE operation in every set, but for fma, which
// the portable set does as a multiply and an add. Kernels written with Vec therefore give the same
// bits in avx512 and avx2.
//
// Everything here is always inlined: see kernels/CMakeLists.txt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/tensor_view.h"

#if defined(__AVX512F__)
#include "kernels/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/simd_avx2.h"
#else
#include "kernels/cpu/simd_portable.h"
#endif

// Loops over lanes and tiles must unroll for their arrays to live in registers. Not under a
// sanitizer, which checks every element: gcc then needs many minutes for a file.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLRACE_UNROLL
#else
#define MILLRACE_UNROLL _Pragma("GCC unroll 32")
#endif

namespace millrace::kernels::MILLRACE_ISA {

inline constexpr int kLanes = 16;
inline constexpr int kParts = kLanes / kPartLanes;

// Lane j is lane j % kPartLanes of part j / kPartLanes.
struct Vec {
  Part part[kParts];
};

// The functions on whole vectors, part by part.
#define MILLRACE_VEC_OP1(name)                                                             \
  MILLRACE_ALWAYS_INLINE Vec name(Vec a) {                                                 \
    Vec out;                                                                               \
    MILLRACE_UNROLL for (int i = 0; i < kParts; ++i) out.part[i] = part_##name(a.part[i]); \
    return out;                                                                            \
  }
#define MILLRACE_VEC_OP2(name)                                     \
  MILLRACE_ALWAYS_INLINE Vec name(Vec a, Vec b) {                  \
    Vec out;                                                       \
    MILLRACE_UNROLL for (int i = 0; i < kParts; ++i) out.part[i] = \
        part_##name(a.part[i], b.part[i]);                         \
    return out;                                                    \
  }
MILLRACE_VEC_OP2(add)
MILLRACE_VEC_OP2(sub)
MILLRACE_VEC_OP2(mul)
MILLRACE_VEC_OP2(div)
MILLRACE_VEC_OP2(max)  // b where either is NaN
MILLRACE_VEC_OP2(min)  // b where either is NaN
#undef MILLRACE_VEC_OP2
#undef MILLRACE_VEC_OP1

// a * b + c: one rounding in avx2 and avx512, two in portable.
MILLRACE_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) {
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) out.part[i] = part_fma(a.part[i], b.part[i], c.part[i]);
  return out;
}

MILLRACE_ALWAYS_INLINE Vec set1(float value) {
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) out.part[i] = part_set1(value);
  return out;
}

MILLRACE_ALWAYS_INLINE Vec load(const float* p) {
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) out.part[i] = part_load(p + i * kPartLanes);
  return out;
}

MILLRACE_ALWAYS_INLINE void store(float* p, Vec v) {
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) part_store(p + i * kPartLanes, v.part[i]);
}

// The first n of 16 (n >= 0); lanes beyond are zero and their memory is not touched.
MILLRACE_ALWAYS_INLINE Vec load_n(const float* p, std::int64_t n) {
  if (n >= kLanes) return load(p);
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    out.part[i] = part_load_n(p + i * kPartLanes, static_cast<int>(n) - i * kPartLanes);
  }
  return out;
}

MILLRACE_ALWAYS_INLINE void store_n(float* p, Vec v, std::int64_t n) {
  if (n >= kLanes) return store(p, v);
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    part_store_n(p + i * kPartLanes, v.part[i], static_cast<int>(n) - i * kPartLanes);
  }
}

// Four sums: lane j of the result is the sum of lanes j, j + 4, j + 8, j + 12, as
// (v[j] + v[j + 8]) + (v[j + 4] + v[j + 12]).
using Float4 = float __attribute__((vector_size(16)));
MILLRACE_ALWAYS_INLINE Float4 reduce_to_4(Vec v) { return parts_to_4(v.part); }

// The fixed tree over 16 lanes: j and j + 8, then j and j + 4, j + 2, j + 1.
MILLRACE_ALWAYS_INLINE float reduce_add(Vec v) {
  const Float4 s = reduce_to_4(v);
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// The same tree for four vectors at once, one sum per lane.
MILLRACE_ALWAYS_INLINE Float4 reduce_add_4(Vec a, Vec b, Vec c, Vec d) {
  using Index4 = int __attribute__((vector_size(16)));
  const Float4 sa = reduce_to_4(a);
  const Float4 sb = reduce_to_4(b);
  const Float4 sc = reduce_to_4(c);
  const Float4 sd = reduce_to_4(d);
  const Float4 ab02 = __builtin_shuffle(sa, sb, Index4{0, 4, 2, 6});  // a0 b0 a2 b2
  const Float4 ab13 = __builtin_shuffle(sa, sb, Index4{1, 5, 3, 7});
  const Float4 cd02 = __builtin_shuffle(sc, sd, Index4{0, 4, 2, 6});
  const Float4 cd13 = __builtin_shuffle(sc, sd, Index4{1, 5, 3, 7});
  const Float4 lane0 = __builtin_shuffle(ab02, cd02, Index4{0, 1, 4, 5});
  const Float4 lane2 = __builtin_shuffle(ab02, cd02, Index4{2, 3, 6, 7});
  const Float4 lane1 = __builtin_shuffle(ab13, cd13, Index4{0, 1, 4, 5});
  const Float4 lane3 = __builtin_shuffle(ab13, cd13, Index4{2, 3, 6, 7});
  return (lane0 + lane2) + (lane1 + lane3);
}

// Any order gives the same number; where lanes are NaN, some lane's or NaN.
MILLRACE_ALWAYS_INLINE float reduce_max(Vec v) {
  using Index4 = int __attribute__((vector_size(16)));
  const auto greater = [](Float4 a, Float4 b) { return a > b ? a : b; };
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  Float4 q[4];
  std::memcpy(q, lanes, sizeof q);
  Float4 m = greater(greater(q[0], q[1]), greater(q[2], q[3]));
  m = greater(m, __builtin_shuffle(m, Index4{2, 3, 0, 1}));
  m = greater(m, __builtin_shuffle(m, Index4{1, 0, 3, 2}));
  return m[0];
}

}  // namespace millrace::kernels::MILLRACE_ISA
