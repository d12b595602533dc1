#include "kernels/embedding.h"

#include "config/check.h"

namespace millrace::kernels {

void check_embedding(std::span<const std::int32_t> ids, const WeightView& table,
                     MatrixView<float> out) {
  CHECK(out.rows() == static_cast<std::int64_t>(ids.size()) && out.cols() == table.cols,
        "ids={} table=[{}, {}] out=[{}, {}]", ids.size(), table.rows, table.cols, out.rows(),
        out.cols());
  for (std::size_t t = 0; t < ids.size(); ++t) {
    CHECK(ids[t] >= 0 && ids[t] < table.rows, "ids[{}]={} V={}", t, ids[t], table.rows);
  }
}

}  // namespace millrace::kernels
