// The KV blocks of one lane, by number. A block holds `block_tokens` positions of every attention
// layer of the model; each stage keeps its own layers' part under the same number.
//
// A block may be held by several sequences that begin alike. One that nobody holds any more keeps
// what it holds until it is needed for something else: the block whose last use is longest ago is
// taken first.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/prefix_index.h"
#include "worker/step.h"

namespace millrace {

class BlockPool {
 public:
  using Node = PrefixIndex::Node;

  BlockPool(std::uint32_t blocks, std::uint32_t block_tokens);

  std::uint32_t capacity() const { return static_cast<std::uint32_t>(holders_.size()); }
  // Blocks that nobody holds, and those of them that a sequence may still find.
  std::uint32_t available() const { return static_cast<std::uint32_t>(free_.size()) + idle(); }
  std::uint32_t idle() const { return static_cast<std::uint32_t>(idle_.size()); }

  // Appends `count` blocks to `out`, each held once, or takes none and returns false.
  bool allocate(std::uint32_t count, std::vector<BlockId>& out);

  // The block that holds `tokens` ([block_tokens]) behind `parent`. Somebody may hold it or not.
  std::optional<PrefixIndex::Entry> find(Node parent, std::span<const std::int32_t> tokens) const {
    return index_.find(parent, tokens);
  }
  std::uint32_t holders(BlockId block) const { return holders_[block]; }
  void hold(BlockId block);  // once more

  // `block`, which the caller holds, will have these tokens behind `parent` in its KV before any
  // plan to come is executed. Returns their node, which may be that of another block that has them
  // too. Where it could be found before, it no longer is.
  Node publish(Node parent, std::span<const std::int32_t> tokens, BlockId block);
  bool knows(Node node) const { return node == PrefixIndex::kRoot || index_.block_of(node); }

  // Gives up one hold of each, the last one first: a beginning outlives what follows it. Giving up
  // a block that nobody holds is our bug (CHECK).
  void release(std::span<const BlockId> blocks);

  // The block of `node` counts as used now.
  void touch(Node node);

  // Nobody is to find these any more, nor are their holders to publish them again.
  void forget(std::span<const BlockId> blocks);
  bool forgotten(BlockId block) const { return forgotten_[block]; }

 private:
  void make_idle(BlockId block);
  void leave_idle(BlockId block);

  PrefixIndex index_;
  std::vector<std::uint32_t> holders_;  // [blocks]
  std::vector<bool> forgotten_;         // [blocks], while held
  std::vector<BlockId> free_;  // a stack: the block freed last is the one most likely still cached
  std::map<std::uint64_t, BlockId> idle_;  // in the index and held by nobody, by time of last use
  std::vector<std::uint64_t> used_;        // [blocks], key into idle_
  std::uint64_t now_ = 0;                  // counts uses
};

}  // namespace millrace
