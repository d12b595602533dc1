// The paged KV cache of one worker: keys and values of the attention layers of its stage, for the
// sequences of its lane. Which block belongs to whom is the coordinator's business.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/kv_write.h"

namespace millrace {

class KvCache {
 public:
  // Memory is reserved here; a page of it becomes resident when a block in it is first written.
  KvCache(std::int64_t attention_layers, std::int64_t blocks, std::int64_t block_tokens,
          std::int64_t kv_heads, std::int64_t head_dim, kernels::DType dtype);

  // `index` counts the attention layers of this stage from 0.
  const kernels::KvPages& layer(std::size_t index) const { return layers_[index]; }
  std::int64_t blocks() const { return blocks_; }
  std::int64_t block_tokens() const { return block_tokens_; }

 private:
  std::int64_t blocks_;
  std::int64_t block_tokens_;
  kernels::Buffer memory_;
  std::vector<kernels::KvPages> layers_;
};

}  // namespace millrace
