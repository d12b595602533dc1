#include "kernels/rms_norm.h"

#include "config/check.h"

namespace millrace::kernels {

void check_rms_norm(MatrixView<const float> x, std::span<const float> weight, float eps,
                    MatrixView<float> out) {
  CHECK(out.rows() == x.rows() && out.cols() == x.cols() &&
            static_cast<std::int64_t>(weight.size()) == x.cols(),
        "x=[{}, {}] weight=[{}] out=[{}, {}]", x.rows(), x.cols(), weight.size(), out.rows(),
        out.cols());
  CHECK(eps > 0, "eps={}", eps);
}

}  // namespace millrace::kernels
