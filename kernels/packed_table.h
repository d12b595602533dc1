// A set of kernels whose packed weights go through other packed kernels than it would choose
// itself. The other ops are the set's.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels {

// kPacked: returns the PackedKernels, whose bits must be those of the set's own; kSet: the set's
// KernelTable. Both by reference to what lives for ever.
template <auto kPacked, auto kSet>
class PackedTable {
 public:
  // The name is that of the packed kernels.
  static const KernelTable& table() {
    static const KernelTable kTable = make();
    return kTable;
  }

 private:
  static KernelTable make() {
    KernelTable table = kSet();
    table.name = kPacked().name;
    table.gemm = &gemm;
    table.grouped_gemm = &grouped_gemm;
    table.gate_up = &gate_up;
    return table;
  }

  static void gemm(const Context& context, MatrixView<const float> x, const WeightView& w,
                   Accumulate accumulate, MatrixView<float> y) {
    if (!is_packed(w.dtype)) return kSet().gemm(context, x, w, accumulate, y);
    packed_gemm(kPacked(), context, x, w, accumulate, y);
  }
  // Experts packed and plain in one call are the set's own: rare, and the same bits.
  static void grouped_gemm(const Context& context, const GroupedGemmArgs& a) {
    check_grouped_gemm(a);
    if (!all_packed(a, a.weights)) return kSet().grouped_gemm(context, a);
    packed_grouped_gemm(kPacked(), context, a);
  }
  static void gate_up(const Context& context, const GateUpArgs& a) {
    check_gate_up(a);
    if (!all_packed(a.gate, a.up) || !one_type(a)) return kSet().gate_up(context, a);
    packed_gate_up(kPacked(), context, a);
  }

  static bool has_rows(const GroupedGemmArgs& a, std::size_t e) {
    return a.offsets[e] < a.offsets[e + 1];
  }
  // Every weight that is read.
  static bool all_packed(const GroupedGemmArgs& a, std::span<const WeightView> weights) {
    for (std::size_t e = 0; e < weights.size(); ++e) {
      if (has_rows(a, e) && !is_packed(weights[e].dtype)) return false;
    }
    return true;
  }
  static bool one_type(const GateUpArgs& a) {
    const WeightView* first = nullptr;
    for (std::size_t e = 0; e < a.up.size(); ++e) {
      if (!has_rows(a.gate, e)) continue;
      if (first == nullptr) first = &a.up[e];
      if (a.gate.weights[e].dtype != first->dtype || a.up[e].dtype != first->dtype) return false;
    }
    return true;
  }
};

}  // namespace millrace::kernels
