#include "coordinator/block_pool.h"

#include "config/check.h"

namespace millrace {

BlockPool::BlockPool(std::uint32_t blocks) : capacity_(blocks), in_use_(blocks, false) {
  free_.reserve(blocks);
  for (std::uint32_t b = blocks; b-- > 0;) free_.push_back(b);
}

bool BlockPool::allocate(std::uint32_t count, std::vector<BlockId>& out) {
  if (count > free_.size()) return false;
  for (std::uint32_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    in_use_[block] = true;
    out.push_back(block);
  }
  return true;
}

void BlockPool::release(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    CHECK(block < capacity_ && in_use_[block], "block={} capacity={}", block, capacity_);
    in_use_[block] = false;
    free_.push_back(block);
  }
}

}  // namespace millrace
