#include "kernels/kv_write.h"

#include "config/check.h"
#include "kernels/dtype_name.h"

namespace millrace::kernels {

void check_kv_pages(const KvPages& p) {
  CHECK(p.dtype == DType::kF32 || p.dtype == DType::kBF16, "dtype={}", dtype_name(p.dtype));
  CHECK(p.block_size > 0 && p.block_size % 16 == 0 && p.head_dim > 0 && p.head_dim % 16 == 0,
        "block_size={} head_dim={}: both must be multiples of 16", p.block_size, p.head_dim);
}

void check_kv_write(TensorView<const float, 3> k, TensorView<const float, 3> v,
                    std::span<const std::int64_t> slots, const KvPages& p) {
  check_kv_pages(p);
  const auto rows = static_cast<std::int64_t>(slots.size());
  CHECK(k.rows() == rows && v.rows() == rows && k.shape[1] == p.kv_heads &&
            v.shape[1] == p.kv_heads && k.shape[2] == p.head_dim && v.shape[2] == p.head_dim,
        "slots={} k=[{}, {}, {}] v=[{}, {}, {}] G={} head_dim={}", rows, k.rows(), k.shape[1],
        k.shape[2], v.rows(), v.shape[1], v.shape[2], p.kv_heads, p.head_dim);
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t slot = slots[static_cast<std::size_t>(t)];
    CHECK(slot == kNoKvSlot || (slot >= 0 && slot < p.num_blocks * p.block_size),
          "slots[{}]={} blocks={} block_size={}", t, slot, p.num_blocks, p.block_size);
  }
}

}  // namespace millrace::kernels
