#include "kernels/kv_write.h"

#include <cstring>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {
namespace {

void store(std::byte* pages, std::int64_t index, DType dtype, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(pages + index * 4, &value, 4);
  } else {
    const std::uint16_t bits = f32_to_bf16(value);
    std::memcpy(pages + index * 2, &bits, 2);
  }
}

}  // namespace

void kv_write(const Context&, TensorView<const float, 3> k, TensorView<const float, 3> v,
              std::span<const std::int64_t> slots, const KvPages& pages) {
  check_kv_write(k, v, slots, pages);
  for (std::int64_t t = 0; t < k.rows(); ++t) {
    const std::int64_t slot = slots[static_cast<std::size_t>(t)];
    if (slot == kNoKvSlot) continue;
    const std::int64_t block = slot / pages.block_size;
    const std::int64_t offset = slot % pages.block_size;
    for (std::int64_t g = 0; g < pages.kv_heads; ++g) {
      for (std::int64_t d = 0; d < pages.head_dim; ++d) {
        store(pages.k, pages.k_index(block, offset, g, d), pages.dtype,
              k.row(t)[g * pages.head_dim + d]);
        store(pages.v, pages.v_index(block, offset, g, d), pages.dtype,
              v.row(t)[g * pages.head_dim + d]);
      }
    }
  }
}

}  // namespace millrace::kernels::reference
