#include "kernels/rms_norm.h"

#include "kernels/cpu/norm.h"
#include "kernels/cpu/set.h"

namespace millrace::kernels::MILLRACE_ISA {

void rms_norm(const Context& context, MatrixView<const float> x, std::span<const float> weight,
              float eps, MatrixView<float> out) {
  check_rms_norm(x, weight, eps, out);
  const std::int64_t d = x.cols();
  const float* w = weight.data();
  parallel_for(context, x.rows(), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* in = x.row(t);
      float* to = out.row(t);
      const Vec scale = set1(rms_scale(in, d, eps));
      for (std::int64_t i = 0; i < d; i += kLanes) {
        const Vec normed = mul(load_n(in + i, d - i), scale);
        store_n(to + i, mul(normed, load_n(w + i, d - i)), d - i);
      }
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
