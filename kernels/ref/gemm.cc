#include "kernels/gemm.h"

#include <vector>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void gemm(const Context&, MatrixView<const float> x, const WeightView& w, Accumulate accumulate,
          MatrixView<float> y) {
  check_gemm(x, w, y);
  if (is_packed(w.dtype)) return packed_gemm(x, w, accumulate, y);
  std::vector<float> row(static_cast<std::size_t>(w.cols));
  for (std::int64_t n = 0; n < w.rows; ++n) {
    dequantize_row(w, n, row.data());
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      double dot = 0;
      for (std::int64_t k = 0; k < w.cols; ++k) {
        dot += static_cast<double>(x.row(t)[k]) * row[static_cast<std::size_t>(k)];
      }
      float& out = y.row(t)[n];
      out =
          accumulate == Accumulate::kAdd ? static_cast<float>(out + dot) : static_cast<float>(dot);
    }
  }
}

}  // namespace millrace::kernels::reference
