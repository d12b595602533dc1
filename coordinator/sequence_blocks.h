// The KV blocks of one sequence, out of its lane's pool: some it has filled, some others have.
//
// `tokens` are always those of the sequence from its first one on, as far as they are known.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "coordinator/block_pool.h"

namespace millrace {

class SequenceBlocks {
 public:
  explicit SequenceBlocks(std::uint32_t block_tokens) : block_tokens_(block_tokens) {}

  std::uint32_t size() const { return static_cast<std::uint32_t>(blocks_.size()); }
  bool empty() const { return blocks_.empty(); }
  // The first ones, whole, which are in the pool's index or were when they were published.
  std::uint32_t published() const { return static_cast<std::uint32_t>(nodes_.size()); }

  // What the first `blocks` of them hold, at least one.
  BlockPool::Node node(std::uint32_t blocks) const { return nodes_[blocks - 1]; }

  // What the pool has of `tokens` behind the published blocks.
  std::vector<PrefixIndex::Entry> find(const BlockPool& pool,
                                       std::span<const std::int32_t> tokens) const;

  // These, which find() has given and the caller holds, now follow the published blocks; what
  // followed them before is given up. The hold passes over.
  void adopt(BlockPool& pool, std::span<const PrefixIndex::Entry> found);

  // Takes `count` more, or none and returns false.
  bool grow(BlockPool& pool, std::uint32_t count) { return pool.allocate(count, blocks_); }

  // Those that the workers do not know of yet; they will now.
  std::vector<BlockId> take_news();

  // The whole blocks of `tokens` will have been computed before any plan to come is executed:
  // others may use them.
  void publish(BlockPool& pool, std::span<const std::int32_t> tokens);

  // Gives all up, to be found again: by its own way if that of another sequence is gone. `tokens`
  // as for publish().
  void release(BlockPool& pool, std::span<const std::int32_t> tokens);
  // Gives all up, not to be found again.
  void forget(BlockPool& pool);

 private:
  void clear();

  std::uint32_t block_tokens_;
  std::vector<BlockId> blocks_;
  std::vector<BlockPool::Node> nodes_;  // of the published ones; where another block holds the same
                                        // tokens, that one's
  std::uint32_t told_ = 0;              // the first blocks, which the workers know of
};

}  // namespace millrace
