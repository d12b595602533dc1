#include "worker/kv_cache.h"

namespace millrace {

KvCache::KvCache(std::int64_t attention_layers, std::int64_t blocks, std::int64_t block_tokens,
                 std::int64_t kv_heads, std::int64_t head_dim, kernels::DType dtype)
    : blocks_(blocks), block_tokens_(block_tokens) {
  kernels::KvPages pages{nullptr, nullptr, dtype, blocks, block_tokens, kv_heads, head_dim};
  const std::int64_t half = blocks * pages.block_bytes();
  memory_ = kernels::Buffer(static_cast<std::size_t>(2 * half * attention_layers));
  for (std::int64_t i = 0; i < attention_layers; ++i) {
    pages.k = memory_.data() + 2 * i * half;
    pages.v = pages.k + half;
    kernels::check_kv_pages(pages);
    layers_.push_back(pages);
  }
}

}  // namespace millrace
