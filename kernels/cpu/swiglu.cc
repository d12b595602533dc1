#include "kernels/swiglu.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/set.h"

namespace millrace::kernels::MILLRACE_ISA {

void swiglu(const Context& context, MatrixView<const float> gate, MatrixView<const float> up,
            MatrixView<float> out) {
  check_swiglu(gate, up, out);
  const std::int64_t width = out.cols();
  const std::int64_t grain = 1 + 16384 / (width + 1);
  parallel_for(context, out.rows(), grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t f = 0; f < width; f += kLanes) {
        const std::int64_t n = width - f;
        const Vec activated = silu(load_n(gate.row(t) + f, n));
        store_n(out.row(t) + f, mul(activated, load_n(up.row(t) + f, n)), n);
      }
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
