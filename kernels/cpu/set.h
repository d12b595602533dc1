// The CPU set of the instruction set this file is compiled for.
#pragma once

#include "kernels/kernel_table.h"

namespace millrace::kernels::MILLRACE_ISA {

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

}  // namespace millrace::kernels::MILLRACE_ISA
