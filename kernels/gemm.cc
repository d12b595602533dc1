#include "kernels/gemm.h"

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "kernels/packed.h"

namespace millrace::kernels {

void check_gemm(MatrixView<const float> x, const WeightView& w, MatrixView<float> y) {
  CHECK(x.cols() == w.cols && y.rows() == x.rows() && y.cols() == w.rows,
        "x=[{}, {}] w=[{}, {}] y=[{}, {}]", x.rows(), x.cols(), w.rows, w.cols, y.rows(), y.cols());
  CHECK(row_fits(w.dtype, w.cols), "dtype={} K={}", dtype_name(w.dtype), w.cols);
  CHECK(!is_packed(w.dtype) || w.rows % kPackedRows == 0, "dtype={} N={}", dtype_name(w.dtype),
        w.rows);
}

}  // namespace millrace::kernels
