// The KV blocks of one lane, by number. A block holds `block_tokens` positions of every attention
// layer of the model; each stage keeps its own layers' part under the same number.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/step.h"

namespace millrace {

class BlockPool {
 public:
  explicit BlockPool(std::uint32_t blocks);

  std::uint32_t capacity() const { return capacity_; }
  std::uint32_t available() const { return static_cast<std::uint32_t>(free_.size()); }

  // Appends `count` blocks to `out`, or takes none and returns false.
  bool allocate(std::uint32_t count, std::vector<BlockId>& out);

  // Gives blocks back. Freeing a block twice, or one that was never handed out, is our bug (CHECK).
  void release(std::span<const BlockId> blocks);

 private:
  std::uint32_t capacity_;
  std::vector<BlockId> free_;  // a stack: the block freed last is the one most likely still cached
  std::vector<bool> in_use_;
};

}  // namespace millrace
