// The set of kernels a worker runs: one function pointer per op. Choosing one: kernels/table.h.
//
// Apart from table.h because the files compiled for an instruction set include this and nothing
// that brings inline functions of other libraries along (kernels/CMakeLists.txt says why).
#pragma once

#include <string_view>

#include "kernels/add.h"
#include "kernels/attention.h"
#include "kernels/combine.h"
#include "kernels/dequantize.h"
#include "kernels/embedding.h"
#include "kernels/gate_up.h"
#include "kernels/gemm.h"
#include "kernels/grouped_gemm.h"
#include "kernels/kv_write.h"
#include "kernels/moe_permute.h"
#include "kernels/qk_norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/router.h"
#include "kernels/short_conv.h"
#include "kernels/swiglu.h"

namespace millrace::kernels {

struct KernelTable {
  std::string_view name;  // kernels/table.h lists them
  EmbeddingOp* embedding = nullptr;
  DequantizeOp* dequantize = nullptr;
  RmsNormOp* rms_norm = nullptr;
  GemmOp* gemm = nullptr;
  RopeAnglesOp* rope_angles = nullptr;
  QkNormRopeOp* qk_norm_rope = nullptr;
  KvWriteOp* kv_write = nullptr;
  AttentionOp* attention = nullptr;
  ShortConvOp* short_conv = nullptr;
  RouterOp* router = nullptr;
  MoePermuteOp* moe_permute = nullptr;
  GroupedGemmOp* grouped_gemm = nullptr;
  GateUpOp* gate_up = nullptr;
  SwigluOp* swiglu = nullptr;
  AddOp* add = nullptr;
  CombineOp* combine = nullptr;
};

}  // namespace millrace::kernels
