#include "kernels/embedding.h"

#include "kernels/cpu/set.h"
#include "kernels/cpu/weights.h"

namespace millrace::kernels::MILLRACE_ISA {

void embedding(const Context& context, std::span<const std::int32_t> ids, const WeightView& table,
               MatrixView<float> out) {
  check_embedding(ids, table, out);
  const std::int32_t* id = ids.data();
  parallel_for(context, out.rows(), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      convert_weight_row(table, id[t], out.row(t));
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
