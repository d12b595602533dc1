#include "coordinator/sequence_blocks.h"

#include <algorithm>
#include <iterator>

namespace millrace {

std::vector<PrefixIndex::Entry> SequenceBlocks::find(const BlockPool& pool,
                                                     std::span<const std::int32_t> tokens) const {
  std::vector<PrefixIndex::Entry> found;
  BlockPool::Node node = nodes_.empty() ? PrefixIndex::kRoot : nodes_.back();
  for (std::size_t begin = nodes_.size() * block_tokens_; begin + block_tokens_ <= tokens.size();
       begin += block_tokens_) {
    const auto next = pool.find(node, tokens.subspan(begin, block_tokens_));
    if (!next) break;
    node = next->node;
    found.push_back(*next);
  }
  return found;
}

void SequenceBlocks::adopt(BlockPool& pool, std::span<const PrefixIndex::Entry> found) {
  pool.release(std::span(blocks_).subspan(published()));
  blocks_.resize(published());
  told_ = std::min(told_, published());
  for (const PrefixIndex::Entry& entry : found) {
    blocks_.push_back(entry.block);
    nodes_.push_back(entry.node);
  }
}

std::vector<BlockId> SequenceBlocks::take_news() {
  std::vector<BlockId> news(std::next(blocks_.begin(), told_), blocks_.end());
  told_ = size();
  return news;
}

void SequenceBlocks::publish(BlockPool& pool, std::span<const std::int32_t> tokens) {
  // Another sequence's block for the same tokens may have been given up and used again.
  while (!nodes_.empty() && !pool.knows(nodes_.back())) nodes_.pop_back();
  for (std::size_t i = nodes_.size(); (i + 1) * block_tokens_ <= tokens.size(); ++i) {
    if (pool.forgotten(blocks_[i])) return;
    nodes_.push_back(pool.publish(nodes_.empty() ? PrefixIndex::kRoot : nodes_.back(),
                                  tokens.subspan(i * block_tokens_, block_tokens_), blocks_[i]));
  }
}

void SequenceBlocks::release(BlockPool& pool, std::span<const std::int32_t> tokens) {
  const auto gone = std::ranges::find_if_not(nodes_, [&](auto node) { return pool.knows(node); });
  nodes_.erase(gone, nodes_.end());
  publish(pool, tokens);
  // Where another's block holds the same, this sequence's own, deeper ones hang on that.
  for (std::size_t i = size(); i-- > 0;) {
    pool.release(std::span(blocks_).subspan(i, 1));
    if (i < nodes_.size()) pool.touch(nodes_[i]);
  }
  clear();
}

void SequenceBlocks::forget(BlockPool& pool) {
  pool.forget(blocks_);
  pool.release(blocks_);
  clear();
}

void SequenceBlocks::clear() {
  blocks_.clear();
  nodes_.clear();
  told_ = 0;
}

}  // namespace millrace
