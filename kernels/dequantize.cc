#include "kernels/dequantize.h"

#include "config/check.h"
#include "kernels/dtype_name.h"

namespace millrace::kernels {

void check_dequantize(const WeightView& w, MatrixView<float> out) {
  CHECK(out.rows() == w.rows && out.cols() == w.cols, "w=[{}, {}] out=[{}, {}]", w.rows, w.cols,
        out.rows(), out.cols());
  CHECK(row_fits(w.dtype, w.cols), "dtype={} K={}", dtype_name(w.dtype), w.cols);
}

}  // namespace millrace::kernels
