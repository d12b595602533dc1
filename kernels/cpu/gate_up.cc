#include "kernels/gate_up.h"

#include "kernels/cpu/set.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// Whether every weight that is read is packed, all in one type.
bool all_packed(const GateUpArgs& a) {
  const std::int64_t* offsets = a.gate.offsets.data();
  const WeightView* gate = a.gate.weights.data();
  const WeightView* up = a.up.data();
  const WeightView* first = nullptr;
  for (std::size_t e = 0; e < a.gate.weights.size(); ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    if (first == nullptr) first = gate + e;
    if (gate[e].dtype != first->dtype || up[e].dtype != first->dtype) return false;
  }
  return first != nullptr && is_packed(first->dtype);
}

}  // namespace

void gate_up(const Context& context, const GateUpArgs& a) {
  check_gate_up(a);
  if (all_packed(a)) return packed_gate_up(packed_kernels(table().name), context, a);
  const std::int64_t rows = a.gate.offsets.data()[a.gate.weights.size()];
  grouped_gemm(context, a.gate);
  GroupedGemmArgs up = a.gate;
  up.weights = a.up;
  up.y = a.work;
  grouped_gemm(context, up);
  const MatrixView<float> y = a.gate.y.slice_rows(0, rows);
  swiglu(context, y, a.work.slice_rows(0, rows), y);
}

}  // namespace millrace::kernels::MILLRACE_ISA
