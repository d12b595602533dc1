// Which KV blocks hold which beginnings of sequences.
//
// The beginnings form a tree: a node stands for all tokens from the first one to the end of a block
// and is found by the node before and the tokens of that block, compared one by one. A hash alone
// would one day find the wrong block, and with it another sequence's answer (contract C1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

#include "worker/step.h"

namespace millrace {

class PrefixIndex {
 public:
  // Names a beginning of whole blocks. Never given out twice, so a node whose block has been used
  // for something else since is known to be gone.
  using Node = std::uint64_t;
  static constexpr Node kRoot = 0;  // no tokens yet

  struct Entry {
    Node node;
    BlockId block;
  };

  PrefixIndex(std::uint32_t blocks, std::uint32_t block_tokens);
  PrefixIndex(const PrefixIndex&) = delete;  // its hash table looks into it
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // The block that holds `tokens` ([block_tokens]) behind `parent`.
  std::optional<Entry> find(Node parent, std::span<const std::int32_t> tokens) const;

  // From now on `block` holds them. Neither block nor tokens are in the index yet (CHECK).
  Node insert(Node parent, std::span<const std::int32_t> tokens, BlockId block);

  bool holds(BlockId block) const { return nodes_[block] != kRoot; }
  // The block of a node that is still there.
  std::optional<BlockId> block_of(Node node) const;

  // What is behind the block cannot be found any more, though it stays until erased itself.
  void erase(BlockId block);

 private:
  struct Wanted {
    Node parent;
    std::span<const std::int32_t> tokens;
  };
  Wanted of(BlockId block) const;

  struct Hash {
    using is_transparent = void;
    const PrefixIndex* index;
    std::size_t operator()(const Wanted& wanted) const;
    std::size_t operator()(BlockId block) const { return (*this)(index->of(block)); }
  };
  struct Equal {
    using is_transparent = void;
    const PrefixIndex* index;
    bool operator()(const Wanted& a, const Wanted& b) const;
    bool operator()(BlockId a, BlockId b) const { return a == b; }
    bool operator()(const Wanted& a, BlockId b) const { return (*this)(a, index->of(b)); }
    bool operator()(BlockId a, const Wanted& b) const { return (*this)(index->of(a), b); }
  };

  std::uint32_t block_tokens_;
  std::vector<Node> nodes_, parents_;  // [blocks]
  std::vector<std::int32_t> tokens_;   // [blocks, block_tokens]
  std::uint64_t inserted_ = 0;
  std::unordered_set<BlockId, Hash, Equal> found_;
};

}  // namespace millrace
