#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void rms_norm(const Context&, MatrixView<const float> x, std::span<const float> weight, float eps,
              MatrixView<float> out) {
  check_rms_norm(x, weight, eps, out);
  const std::int64_t d = x.cols();
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      squares += static_cast<double>(x.row(t)[i]) * x.row(t)[i];
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(d) + eps);
    for (std::int64_t i = 0; i < d; ++i) {
      out.row(t)[i] = static_cast<float>(x.row(t)[i] * scale * weight[static_cast<std::size_t>(i)]);
    }
  }
}

}  // namespace millrace::kernels::reference
