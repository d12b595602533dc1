#include "kernels/kernel_table.h"

#include "kernels/cpu/set.h"

#define MILLRACE_STRING(x) MILLRACE_STRING_(x)
#define MILLRACE_STRING_(x) #x

namespace millrace::kernels::MILLRACE_ISA {

const KernelTable& table() {
  static constexpr KernelTable kTable = {
      .name = MILLRACE_STRING(MILLRACE_ISA),
      .embedding = &embedding,
      .dequantize = &dequantize,
      .rms_norm = &rms_norm,
      .gemm = &gemm,
      .rope_angles = &rope_angles,
      .qk_norm_rope = &qk_norm_rope,
      .kv_write = &kv_write,
      .attention = &attention,
      .short_conv = &short_conv,
      .router = &router,
      .moe_permute = &moe_permute,
      .grouped_gemm = &grouped_gemm,
      .gate_up = &gate_up,
      .swiglu = &swiglu,
      .add = &add,
      .combine = &combine,
  };
  return kTable;
}

}  // namespace millrace::kernels::MILLRACE_ISA
