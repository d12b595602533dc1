#include "kernels/swiglu.h"

#include <cmath>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void swiglu(const Context&, MatrixView<const float> gate, MatrixView<const float> up,
            MatrixView<float> out) {
  check_swiglu(gate, up, out);
  for (std::int64_t t = 0; t < out.rows(); ++t) {
    for (std::int64_t f = 0; f < out.cols(); ++f) {
      const double a = gate.row(t)[f];
      out.row(t)[f] = static_cast<float>(a / (1 + std::exp(-a)) * up.row(t)[f]);
    }
  }
}

}  // namespace millrace::kernels::reference
