#include "kernels/combine.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void combine(const Context&, const CombineArgs& a) {
  check_combine(a);
  for (std::int64_t t = 0; t < a.out.rows(); ++t) {
    for (std::int64_t i = 0; i < a.out.cols(); ++i) {
      double sum = 0;
      for (std::int64_t k = 0; k < a.rows.cols(); ++k) {
        const std::int32_t row = a.rows.row(t)[k];
        if (row >= 0) sum += static_cast<double>(a.weights.row(t)[k]) * a.y.row(row)[i];
      }
      float& out = a.out.row(t)[i];
      out = a.accumulate == Accumulate::kAdd ? static_cast<float>(out + sum)
                                             : static_cast<float>(sum);
    }
  }
}

}  // namespace millrace::kernels::reference
