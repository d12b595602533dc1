#include "coordinator/sequence_blocks.h"

#include <algorithm>
#include <iterator>

#include "config/check.h"

namespace millrace {

namespace {

std::span<const std::int32_t> block(std::span<const std::int32_t> tokens, std::size_t index,
                                    std::uint32_t block_tokens) {
  return tokens.subspan(index * block_tokens, block_tokens);
}

}  // namespace

SequenceBlocks::Reach SequenceBlocks::reach(const BlockPool& pool,
                                            std::span<const std::int32_t> tokens,
                                            std::uint32_t block_tokens) const {
  Reach reach{static_cast<std::uint32_t>(nodes_.size()), 0};
  BlockPool::Node node = nodes_.empty() ? PrefixIndex::kRoot : nodes_.back();
  while ((reach.blocks + 1) * std::uint64_t{block_tokens} <= tokens.size()) {
    const auto next = pool.find(node, block(tokens, reach.blocks, block_tokens));
    if (!next) break;
    node = next->node;
    ++reach.blocks;
    if (pool.holders(next->block) > 0) ++reach.held;
  }
  return reach;
}

void SequenceBlocks::adopt(BlockPool& pool, std::span<const std::int32_t> tokens,
                           std::uint32_t block_tokens, std::uint32_t blocks) {
  const std::size_t own = nodes_.size();
  pool.release(std::span(blocks_).subspan(own));
  blocks_.resize(own);
  told_ = std::min(told_, static_cast<std::uint32_t>(own));
  while (nodes_.size() < blocks) {
    const auto next = pool.find(nodes_.empty() ? PrefixIndex::kRoot : nodes_.back(),
                                block(tokens, nodes_.size(), block_tokens));
    CHECK(next.has_value(), "block {} of {} is gone", nodes_.size(), blocks);
    pool.hold(next->block);
    blocks_.push_back(next->block);
    nodes_.push_back(next->node);
  }
}

std::vector<BlockId> SequenceBlocks::take_news() {
  std::vector<BlockId> news(std::next(blocks_.begin(), told_), blocks_.end());
  told_ = size();
  return news;
}

void SequenceBlocks::publish(BlockPool& pool, std::span<const std::int32_t> tokens,
                             std::uint32_t block_tokens) {
  // Another sequence's block for the same tokens may have been given up and used again.
  while (!nodes_.empty() && !pool.knows(nodes_.back())) nodes_.pop_back();
  while ((nodes_.size() + 1) * block_tokens <= tokens.size()) {
    const std::size_t i = nodes_.size();
    nodes_.push_back(pool.publish(nodes_.empty() ? PrefixIndex::kRoot : nodes_.back(),
                                  block(tokens, i, block_tokens), blocks_[i]));
  }
}

void SequenceBlocks::release(BlockPool& pool) {
  // Where another's block holds the same, this sequence's own, deeper ones hang on that.
  for (std::size_t i = size(); i-- > 0;) {
    pool.release(std::span(blocks_).subspan(i, 1));
    if (i < nodes_.size()) pool.touch(nodes_[i]);
  }
  *this = SequenceBlocks{};
}

void SequenceBlocks::forget(BlockPool& pool) {
  pool.forget(blocks_);
  pool.release(blocks_);
  *this = SequenceBlocks{};
}

}  // namespace millrace
