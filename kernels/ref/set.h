// The reference set: the definition of each op in plain loops, sums in double, rounded once at the
// end. Tests compare every other set with it. Slow on purpose.
#pragma once

#include "kernels/kernel_table.h"

namespace millrace::kernels::reference {

EmbeddingOp embedding;
DequantizeOp dequantize;
RmsNormOp rms_norm;
GemmOp gemm;
RopeAnglesOp rope_angles;
QkNormRopeOp qk_norm_rope;
KvWriteOp kv_write;
AttentionOp attention;
ShortConvOp short_conv;
RouterOp router;
MoePermuteOp moe_permute;
GroupedGemmOp grouped_gemm;
GateUpOp gate_up;
SwigluOp swiglu;
AddOp add;
CombineOp combine;

const KernelTable& table();

// One row of a weight of any dtype as f32, by the definition of its format.
void dequantize_row(const WeightView& w, std::int64_t row, float* out);

// gemm of packed weights, in f32 by the order of kernels/packed_gemm.h: other sets have its bits.
void packed_gemm(MatrixView<const float> x, const WeightView& w, Accumulate accumulate,
                 MatrixView<float> y);

}  // namespace millrace::kernels::reference
