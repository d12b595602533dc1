#include "kernels/add.h"

#include "config/check.h"

namespace millrace::kernels {

void check_add(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out) {
  CHECK(a.rows() == out.rows() && b.rows() == out.rows() && a.cols() == out.cols() &&
            b.cols() == out.cols(),
        "a=[{}, {}] b=[{}, {}] out=[{}, {}]", a.rows(), a.cols(), b.rows(), b.cols(), out.rows(),
        out.cols());
}

}  // namespace millrace::kernels
