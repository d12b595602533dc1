#include "kernels/grouped_gemm.h"

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "kernels/packed.h"

namespace millrace::kernels {

void check_grouped_gemm(const GroupedGemmArgs& a) {
  CHECK(a.offsets.size() == a.weights.size() + 1 && a.offsets.front() == 0, "offsets={} weights={}",
        a.offsets.size(), a.weights.size());
  const std::int64_t rows = a.offsets.back();
  CHECK(
      rows <= a.y.rows() && (a.x_rows.empty() ? rows <= a.x.rows()
                                              : rows == static_cast<std::int64_t>(a.x_rows.size())),
      "R={} x={} x_rows={} y={}", rows, a.x.rows(), a.x_rows.size(), a.y.rows());
  for (std::size_t e = 0; e < a.weights.size(); ++e) {
    CHECK(a.offsets[e] <= a.offsets[e + 1], "offsets[{}]={} offsets[{}]={}", e, a.offsets[e], e + 1,
          a.offsets[e + 1]);
    if (a.offsets[e] == a.offsets[e + 1]) continue;
    const WeightView& w = a.weights[e];
    CHECK(w.rows == a.y.cols() && w.cols == a.x.cols() && row_fits(w.dtype, w.cols) &&
              (!is_packed(w.dtype) || w.rows % kPackedRows == 0),
          "expert {}: w=[{}, {}] {} K={} N={}", e, w.rows, w.cols, dtype_name(w.dtype), a.x.cols(),
          a.y.cols());
  }
  for (const std::int32_t row : a.x_rows) {
    CHECK(row >= 0 && row < a.x.rows(), "x_rows has {}; x has {} rows", row, a.x.rows());
  }
}

}  // namespace millrace::kernels
