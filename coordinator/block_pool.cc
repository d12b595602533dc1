#include "coordinator/block_pool.h"

#include "config/check.h"

namespace millrace {

BlockPool::BlockPool(std::uint32_t blocks, std::uint32_t block_tokens)
    : index_(blocks, block_tokens),
      holders_(blocks, 0),
      forgotten_(blocks, false),
      used_(blocks, 0) {
  free_.reserve(blocks);
  for (std::uint32_t b = blocks; b-- > 0;) free_.push_back(b);
}

bool BlockPool::allocate(std::uint32_t count, std::vector<BlockId>& out) {
  if (count > available()) return false;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (free_.empty()) {
      const BlockId oldest = idle_.begin()->second;
      leave_idle(oldest);
      index_.erase(oldest);
      free_.push_back(oldest);
    }
    const BlockId block = free_.back();
    free_.pop_back();
    holders_[block] = 1;
    out.push_back(block);
  }
  return true;
}

void BlockPool::hold(BlockId block) {
  if (holders_[block]++ > 0) return;
  CHECK(index_.holds(block), "block={} is free", block);
  leave_idle(block);
}

BlockPool::Node BlockPool::publish(Node parent, std::span<const std::int32_t> tokens,
                                   BlockId block) {
  if (const auto there = index_.find(parent, tokens)) return there->node;
  index_.erase(block);
  return index_.insert(parent, tokens, block);
}

void BlockPool::release(std::span<const BlockId> blocks) {
  for (std::size_t i = blocks.size(); i-- > 0;) {
    const BlockId block = blocks[i];
    CHECK(block < capacity() && holders_[block] > 0, "block={} capacity={}", block, capacity());
    if (--holders_[block] > 0) continue;
    if (index_.holds(block)) {
      make_idle(block);
    } else {
      forgotten_[block] = false;
      free_.push_back(block);
    }
  }
}

void BlockPool::touch(Node node) {
  const std::optional<BlockId> block = index_.block_of(node);
  if (!block || holders_[*block] > 0) return;
  leave_idle(*block);
  make_idle(*block);
}

void BlockPool::forget(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    const bool idle = holders_[block] == 0 && index_.holds(block);
    index_.erase(block);
    if (holders_[block] > 0) forgotten_[block] = true;
    if (!idle) continue;
    leave_idle(block);
    free_.push_back(block);
  }
}

void BlockPool::make_idle(BlockId block) {
  used_[block] = ++now_;
  idle_.emplace(now_, block);
}

void BlockPool::leave_idle(BlockId block) { idle_.erase(used_[block]); }

}  // namespace millrace
