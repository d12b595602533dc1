#include "kernels/kv_write.h"

#include "kernels/cpu/set.h"
#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

struct StoreF32 {
  using Value = float;
  MILLRACE_ALWAYS_INLINE static float convert(float v) { return v; }
};
struct StoreBf16 {
  using Value = std::uint16_t;
  MILLRACE_ALWAYS_INLINE static std::uint16_t convert(float v) { return f32_to_bf16(v); }
};

template <class Store>
void write_token(const float* k, const float* v, std::int64_t slot, const KvPages& p) {
  using Value = typename Store::Value;
  const std::int64_t block = slot / p.block_size;
  const std::int64_t offset = slot % p.block_size;
  for (std::int64_t g = 0; g < p.kv_heads; ++g) {
    Value* to_k = reinterpret_cast<Value*>(p.k) + p.k_index(block, offset, g, 0);
    Value* to_v = reinterpret_cast<Value*>(p.v) + p.v_index(block, offset, g, 0);
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      to_k[d * p.block_size] = Store::convert(k[g * p.head_dim + d]);
      to_v[d] = Store::convert(v[g * p.head_dim + d]);
    }
  }
}

}  // namespace

void kv_write(const Context& context, TensorView<const float, 3> k, TensorView<const float, 3> v,
              std::span<const std::int64_t> slots, const KvPages& pages) {
  check_kv_write(k, v, slots, pages);
  const std::int64_t* slot = slots.data();
  const auto write = pages.dtype == DType::kF32 ? &write_token<StoreF32> : &write_token<StoreBf16>;
  parallel_for(context, k.rows(), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (slot[t] != kNoKvSlot) write(k.row(t), v.row(t), slot[t], pages);
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
