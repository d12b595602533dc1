#include "coordinator/prefix_index.h"

#include <algorithm>
#include <functional>
#include <string_view>

#include "config/check.h"

namespace millrace {

PrefixIndex::PrefixIndex(std::uint32_t blocks, std::uint32_t block_tokens)
    : block_tokens_(block_tokens),
      nodes_(blocks, kRoot),
      parents_(blocks, kRoot),
      tokens_(std::size_t{blocks} * block_tokens),
      found_(0, Hash{this}, Equal{this}) {}

PrefixIndex::Wanted PrefixIndex::of(BlockId block) const {
  return {parents_[block],
          std::span(tokens_).subspan(std::size_t{block} * block_tokens_, block_tokens_)};
}

std::size_t PrefixIndex::Hash::operator()(const Wanted& wanted) const {
  const std::string_view bytes(reinterpret_cast<const char*>(wanted.tokens.data()),
                               wanted.tokens.size_bytes());
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
  return std::hash<std::string_view>{}(bytes) ^ (wanted.parent * kGolden);
}

bool PrefixIndex::Equal::operator()(const Wanted& a, const Wanted& b) const {
  return a.parent == b.parent && std::ranges::equal(a.tokens, b.tokens);
}

std::optional<PrefixIndex::Entry> PrefixIndex::find(Node parent,
                                                    std::span<const std::int32_t> tokens) const {
  const auto it = found_.find(Wanted{parent, tokens});
  if (it == found_.end()) return std::nullopt;
  return Entry{nodes_[*it], *it};
}

PrefixIndex::Node PrefixIndex::insert(Node parent, std::span<const std::int32_t> tokens,
                                      BlockId block) {
  CHECK(block < nodes_.size() && !holds(block) && tokens.size() == block_tokens_,
        "block={} of {}, {} tokens", block, nodes_.size(), tokens.size());
  parents_[block] = parent;
  std::ranges::copy(tokens, tokens_.begin() + std::ptrdiff_t{block} * block_tokens_);
  nodes_[block] = ++inserted_ * nodes_.size() + block;
  const bool inserted = found_.insert(block).second;
  CHECK(inserted, "the tokens of block {} are in the index already", block);
  return nodes_[block];
}

std::optional<BlockId> PrefixIndex::block_of(Node node) const {
  const auto block = static_cast<BlockId>(node % nodes_.size());
  if (node == kRoot || nodes_[block] != node) return std::nullopt;
  return block;
}

void PrefixIndex::erase(BlockId block) {
  if (!holds(block)) return;
  found_.erase(block);
  nodes_[block] = kRoot;
}

}  // namespace millrace
