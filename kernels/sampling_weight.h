// The weight of a token in sampling: floor(2^44 * exp(x)) for x in [-inf, 0] (kernels/sampling.h).
// One source for the CPU's vectors, for a single float and for CUDA: only IEEE multiplications,
// additions and comparisons, each rounded by itself, so that every processor gets the same bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
// nvcc would contract a * b + c; these instructions are not contracted.
#define MILLRACE_WEIGHT_FUNCTION __device__ __forceinline__
#else
// Built with -ffp-contract=off (CMakeLists.txt). Inlined always: vectors are no function arguments.
#define MILLRACE_WEIGHT_FUNCTION [[gnu::always_inline]] inline
#endif

namespace millrace::kernels::sampling_weight {

inline constexpr float kWeightOne = 0x1p44F;

#if defined(__CUDACC__)
MILLRACE_WEIGHT_FUNCTION float add(float a, float b) { return __fadd_rn(a, b); }
MILLRACE_WEIGHT_FUNCTION float mul(float a, float b) { return __fmul_rn(a, b); }
#else
template <class A, class B>
MILLRACE_WEIGHT_FUNCTION auto add(A a, B b) {
  return a + b;
}
template <class A, class B>
MILLRACE_WEIGHT_FUNCTION auto mul(A a, B b) {
  return a * b;
}
#endif

// exp(x) for x in [-inf, 0]: x = n ln2 + r with |r| <= ln2/2, Taylor's polynomial of degree 7 in r
// (its truncation, r^8/8! < 5.2e-9, is below a tenth of an ulp of float), times 2^n. ln2 is split
// into two parts, the first with 9 trailing zero bits so that n * kLn2High is exact. Below -87 the
// result stays at exp(-87) = 1.6e-38, whose weight is 0 like that of everything below -30.5.
// Float is float or a vector of them, Int the signed integer of its shape.
template <class Int, class Float>
MILLRACE_WEIGHT_FUNCTION Float exp_nonpositive(Float x) {
  constexpr float kLog2E = 0x1.715476p+0F;
  constexpr float kLn2High = 0x1.62e4p-1F;
  constexpr float kLn2Low = 0x1.7f7d1cp-20F;
  constexpr float kRound = 0x1.8p23F;  // adding it leaves the nearest integer in the low bits
  constexpr std::int32_t kRoundBits = 0x4b400000;
  const Float lowest = add(Float{}, -87.0F);
  x = x < -87.0F ? lowest : x;
  const Float shifted = add(mul(x, kLog2E), kRound);
  const Float n = add(shifted, -kRound);
  const Float r = add(add(x, mul(n, -kLn2High)), mul(n, -kLn2Low));
  Float p = add(Float{}, 1.0F / 5040);
  p = add(mul(p, r), 1.0F / 720);
  p = add(mul(p, r), 1.0F / 120);
  p = add(mul(p, r), 1.0F / 24);
  p = add(mul(p, r), 1.0F / 6);
  p = add(mul(p, r), 0.5F);
  p = add(add(mul(mul(p, r), r), r), 1.0F);
  const Int exponent = __builtin_bit_cast(Int, shifted) - kRoundBits;
  const Int power = (exponent + 127) << 23;
  return mul(p, __builtin_bit_cast(Float, power));
}

MILLRACE_WEIGHT_FUNCTION std::uint64_t weight_of(float probability) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(mul(probability, kWeightOne)));
}

}  // namespace millrace::kernels::sampling_weight
