#include "kernels/kernel_table.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

const KernelTable& table() {
  static constexpr KernelTable kTable = {
      .name = "reference",
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

}  // namespace millrace::kernels::reference
