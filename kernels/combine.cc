#include "kernels/combine.h"

#include "config/check.h"

namespace millrace::kernels {

void check_combine(const CombineArgs& a) {
  CHECK(a.rows.rows() == a.out.rows() && a.weights.rows() == a.out.rows() &&
            a.weights.cols() == a.rows.cols() && a.y.cols() == a.out.cols(),
        "y=[{}, {}] rows=[{}, {}] weights=[{}, {}] out=[{}, {}]", a.y.rows(), a.y.cols(),
        a.rows.rows(), a.rows.cols(), a.weights.rows(), a.weights.cols(), a.out.rows(),
        a.out.cols());
  for (std::int64_t t = 0; t < a.rows.rows(); ++t) {
    for (std::int64_t k = 0; k < a.rows.cols(); ++k) {
      const std::int32_t row = a.rows.row(t)[k];
      CHECK(row >= -1 && row < a.y.rows(), "rows[{}, {}]={} of {}", t, k, row, a.y.rows());
    }
  }
}

}  // namespace millrace::kernels
