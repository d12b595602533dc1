#include "kernels/embedding.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void embedding(const Context&, std::span<const std::int32_t> ids, const WeightView& table,
               MatrixView<float> out) {
  check_embedding(ids, table, out);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    dequantize_row(table, ids[t], out.row(static_cast<std::int64_t>(t)));
  }
}

}  // namespace millrace::kernels::reference
