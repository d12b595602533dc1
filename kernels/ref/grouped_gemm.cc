#include "kernels/grouped_gemm.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void grouped_gemm(const Context& context, const GroupedGemmArgs& a) {
  check_grouped_gemm(a);
  for (std::size_t e = 0; e < a.weights.size(); ++e) {
    for (std::int64_t r = a.offsets[e]; r < a.offsets[e + 1]; ++r) {
      const std::int64_t source = a.x_rows.empty() ? r : a.x_rows[static_cast<std::size_t>(r)];
      gemm(context, a.x.slice_rows(source, 1), a.weights[e], Accumulate::kStore,
           a.y.slice_rows(r, 1));
    }
  }
}

}  // namespace millrace::kernels::reference
