#include "kernels/add.h"

#include "kernels/cpu/set.h"
#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {

void add(const Context& context, MatrixView<const float> a, MatrixView<const float> b,
         MatrixView<float> out) {
  check_add(a, b, out);
  const std::int64_t width = out.cols();
  parallel_for(context, out.rows(), 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t i = 0; i < width; i += kLanes) {
        const std::int64_t n = width - i;
        store_n(out.row(t) + i, add(load_n(a.row(t) + i, n), load_n(b.row(t) + i, n)), n);
      }
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
