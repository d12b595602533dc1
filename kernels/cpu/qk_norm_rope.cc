#include "kernels/qk_norm_rope.h"

#include <math.h>

#include "kernels/cpu/norm.h"
#include "kernels/cpu/set.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// x * scale * weight for the lanes from i on.
MILLRACE_ALWAYS_INLINE Vec normed(const float* x, const float* weight, Vec scale, std::int64_t n) {
  return mul(mul(load_n(x, n), scale), load_n(weight, n));
}

void head(float* x, std::int64_t head_dim, const float* weight, float eps, const float* cos,
          const float* sin) {
  const std::int64_t half = head_dim / 2;
  const Vec scale = set1(rms_scale(x, head_dim, eps));
  for (std::int64_t i = 0; i < half; i += kLanes) {
    const std::int64_t n = half - i;
    const Vec a = normed(x + i, weight + i, scale, n);
    const Vec b = normed(x + half + i, weight + half + i, scale, n);
    const Vec c = load_n(cos + i, n);
    const Vec s = load_n(sin + i, n);
    store_n(x + i, fma(a, c, sub(set1(0.0F), mul(b, s))), n);
    store_n(x + half + i, fma(b, c, mul(a, s)), n);
  }
}

}  // namespace

void rope_angles(const Context& context, std::span<const std::int32_t> positions,
                 std::span<const float> inverse_frequencies, MatrixView<float> cos_out,
                 MatrixView<float> sin_out) {
  check_rope_angles(positions, inverse_frequencies, cos_out, sin_out);
  const std::int32_t* position = positions.data();
  const float* frequency = inverse_frequencies.data();
  const std::int64_t half = cos_out.cols();
  parallel_for(context, cos_out.rows(), 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t i = 0; i < half; ++i) {
        // The angle is an f32 product, as in Transformers; in double its cosine rounds to the
        // same float whichever variant the C library picks for the CPU.
        const auto angle = static_cast<double>(static_cast<float>(position[t]) * frequency[i]);
        cos_out.row(t)[i] = static_cast<float>(::cos(angle));
        sin_out.row(t)[i] = static_cast<float>(::sin(angle));
      }
    }
  });
}

void qk_norm_rope(const Context& context, const QkNormRopeArgs& a) {
  check_qk_norm_rope(a);
  const std::int64_t head_dim = a.q.shape[2];
  const float* q_weight = a.q_weight.data();
  const float* k_weight = a.k_weight.data();
  parallel_for(context, a.q.rows(), 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t h = 0; h < a.q.shape[1]; ++h) {
        head(a.q.row(t) + h * head_dim, head_dim, q_weight, a.eps, a.cos.row(t), a.sin.row(t));
      }
      for (std::int64_t g = 0; g < a.k.shape[1]; ++g) {
        head(a.k.row(t) + g * head_dim, head_dim, k_weight, a.eps, a.cos.row(t), a.sin.row(t));
      }
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
