// exp, sigmoid and silu on 16 lanes. Every lane computes the same function, so a value does not
// depend on where in a row it stands; remainders are padded.
#pragma once

#include <bit>

#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {

// exp(x) within 1.3 ulp (0.95 with a fused multiply-add); 0 below -104, infinity above 88.73, NaN
// for NaN.
//
// x = n ln2 + r with |r| <= ln2/2. ln2 is split so that n * 355/512 is exact for |n| < 2^15. e^r is
// its Taylor sum to r^7: the rest is under (ln2/2)^8 / 8! = 6e-9, a tenth of an ulp of f32.
MILLRACE_ALWAYS_INLINE Vec exp(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer, to nearest, in the low bits of the sum.
  constexpr float kMagic = 12582912.0F;
  x = max(set1(-105.0F), min(set1(89.0F), x));  // NaN passes: the second operand wins
  const Vec shifted = fma(x, set1(1.44269504F), set1(kMagic));
  const Vec n = sub(shifted, set1(kMagic));
  Vec r = fma(n, set1(-0.693359375F), x);
  r = fma(n, set1(2.12194440e-4F), r);
  Vec p = set1(1.0F / 5040);
  p = fma(p, r, set1(1.0F / 720));
  p = fma(p, r, set1(1.0F / 120));
  p = fma(p, r, set1(1.0F / 24));
  p = fma(p, r, set1(1.0F / 6));
  p = fma(p, r, set1(0.5F));
  p = fma(p, r, set1(1.0F));
  p = fma(p, r, set1(1.0F));
  Vec out;
  MILLRACE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    Part a;
    Part b;
    part_pow2(shifted.part[i], std::bit_cast<std::int32_t>(kMagic), a, b);
    out.part[i] = part_mul(part_mul(p.part[i], a), b);
  }
  return out;
}

MILLRACE_ALWAYS_INLINE Vec one_plus_exp_minus(Vec x) {
  return add(set1(1.0F), exp(sub(set1(0.0F), x)));
}

MILLRACE_ALWAYS_INLINE Vec sigmoid(Vec x) { return div(set1(1.0F), one_plus_exp_minus(x)); }

MILLRACE_ALWAYS_INLINE Vec silu(Vec x) { return div(x, one_plus_exp_minus(x)); }

}  // namespace millrace::kernels::MILLRACE_ISA
