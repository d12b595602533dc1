// The paged KV cache of one attention layer, and writing a step's keys and values into it.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// View of one layer's pages. A block holds block_size consecutive positions of one sequence:
//   k [num_blocks, G, head_dim, block_size]   so that one load takes a component of 16 positions
//   v [num_blocks, G, block_size, head_dim]   so that one load takes 16 components of a position
// block_size and head_dim are multiples of 16. dtype is kF32 or kBF16. Whole blocks may be copied
// as bytes; inside a block only kernels know the order.
struct KvPages {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  DType dtype = DType::kF32;
  std::int64_t num_blocks = 0;
  std::int64_t block_size = 0;
  std::int64_t kv_heads = 0;  // G
  std::int64_t head_dim = 0;

  MILLRACE_ALWAYS_INLINE std::int64_t element_bytes() const { return dtype == DType::kF32 ? 4 : 2; }
  // Bytes of one block in k, and the same in v.
  MILLRACE_ALWAYS_INLINE std::int64_t block_bytes() const {
    return kv_heads * head_dim * block_size * element_bytes();
  }
  MILLRACE_ALWAYS_INLINE std::int64_t k_index(std::int64_t block, std::int64_t offset,
                                              std::int64_t g, std::int64_t d) const {
    return ((block * kv_heads + g) * head_dim + d) * block_size + offset;
  }
  MILLRACE_ALWAYS_INLINE std::int64_t v_index(std::int64_t block, std::int64_t offset,
                                              std::int64_t g, std::int64_t d) const {
    return ((block * kv_heads + g) * block_size + offset) * head_dim + d;
  }
};

// Where a token's row goes: block * block_size + offset, or kNoKvSlot to write nothing (tokens that
// are run again only to rebuild conv state).
inline constexpr std::int64_t kNoKvSlot = -1;

// k, v [T, G, head_dim], after norm and rotation; slots [T], distinct but for kNoKvSlot. bf16 pages
// round to nearest even.
using KvWriteOp = void(const Context& context, TensorView<const float, 3> k,
                       TensorView<const float, 3> v, std::span<const std::int64_t> slots,
                       const KvPages& pages);

void check_kv_pages(const KvPages& pages);
void check_kv_write(TensorView<const float, 3> k, TensorView<const float, 3> v,
                    std::span<const std::int64_t> slots, const KvPages& pages);

}  // namespace millrace::kernels
