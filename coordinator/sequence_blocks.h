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
  std::uint32_t size() const { return static_cast<std::uint32_t>(blocks_.size()); }
  bool empty() const { return blocks_.empty(); }

  // What the pool has of `tokens`, beginning at the first one.
  struct Reach {
    std::uint32_t blocks = 0;  // whole ones
    std::uint32_t held = 0;    // those of them that cost nothing, as somebody holds them anyway
  };
  Reach reach(const BlockPool& pool, std::span<const std::int32_t> tokens,
              std::uint32_t block_tokens) const;

  // Holds what reach() found, up to `blocks`, in place of its own unfinished block.
  void adopt(BlockPool& pool, std::span<const std::int32_t> tokens, std::uint32_t block_tokens,
             std::uint32_t blocks);

  // Takes `count` more, or none and returns false.
  bool grow(BlockPool& pool, std::uint32_t count) { return pool.allocate(count, blocks_); }

  // Those that the workers do not know of yet; they will now.
  std::vector<BlockId> take_news();

  // The whole blocks of `tokens` will have been computed before any plan to come is executed:
  // others may use them.
  void publish(BlockPool& pool, std::span<const std::int32_t> tokens, std::uint32_t block_tokens);

  void release(BlockPool& pool);
  // As release(), and what they hold is not to be used again.
  void forget(BlockPool& pool);

 private:
  std::vector<BlockId> blocks_;
  std::vector<BlockPool::Node> nodes_;  // of the first blocks, those that are published
  std::uint32_t told_ = 0;              // the first blocks, which the workers know of
};

}  // namespace millrace
