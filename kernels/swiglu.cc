#include "kernels/swiglu.h"

#include "config/check.h"

namespace millrace::kernels {

void check_swiglu(MatrixView<const float> gate, MatrixView<const float> up, MatrixView<float> out) {
  CHECK(gate.rows() == out.rows() && up.rows() == out.rows() && gate.cols() == out.cols() &&
            up.cols() == out.cols(),
        "gate=[{}, {}] up=[{}, {}] out=[{}, {}]", gate.rows(), gate.cols(), up.rows(), up.cols(),
        out.rows(), out.cols());
}

}  // namespace millrace::kernels
