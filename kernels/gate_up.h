// The first half of a SwiGLU: y = silu(x w1^T) * (x w3^T), for each expert as grouped_gemm has it;
// a dense layer is one expert that takes all rows. The bits are those of grouped_gemm with either
// weight and of swiglu on what they give (kernels/grouped_gemm.h, kernels/swiglu.h).
#pragma once

#include "kernels/grouped_gemm.h"

namespace millrace::kernels {

struct GateUpArgs {
  GroupedGemmArgs gate;            // weights: w1 of each expert, [F, K]; y: the result
  std::span<const WeightView> up;  // [E_local]: w3, each [F, K]
  MatrixView<float> work;          // [>= R, F], overlapping nothing: written where the set has no
                                   // kernel that does all at once
};

using GateUpOp = void(const Context& context, const GateUpArgs& args);

void check_gate_up(const GateUpArgs& args);

}  // namespace millrace::kernels
