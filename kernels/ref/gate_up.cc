#include "kernels/gate_up.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void gate_up(const Context& context, const GateUpArgs& a) {
  check_gate_up(a);
  const std::int64_t rows = a.gate.offsets.back();
  grouped_gemm(context, a.gate);
  GroupedGemmArgs up = a.gate;
  up.weights = a.up;
  up.y = a.work;
  grouped_gemm(context, up);
  const auto y = a.gate.y.slice_rows(0, rows);
  swiglu(context, y, a.work.slice_rows(0, rows), y);
}

}  // namespace millrace::kernels::reference
