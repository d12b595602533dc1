#include "kernels/gate_up.h"

#include "config/check.h"

namespace millrace::kernels {

void check_gate_up(const GateUpArgs& args) {
  check_grouped_gemm(args.gate);
  GroupedGemmArgs up = args.gate;
  up.weights = args.up;
  check_grouped_gemm(up);
  CHECK(args.work.rows() >= args.gate.offsets.back() && args.work.cols() == args.gate.y.cols(),
        "work=[{}, {}] R={} F={}", args.work.rows(), args.work.cols(), args.gate.offsets.back(),
        args.gate.y.cols());
}

}  // namespace millrace::kernels
