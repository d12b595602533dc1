#include "kernels/add.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void add(const Context&, MatrixView<const float> a, MatrixView<const float> b,
         MatrixView<float> out) {
  check_add(a, b, out);
  for (std::int64_t t = 0; t < out.rows(); ++t) {
    for (std::int64_t i = 0; i < out.cols(); ++i) out.row(t)[i] = a.row(t)[i] + b.row(t)[i];
  }
}

}  // namespace millrace::kernels::reference
