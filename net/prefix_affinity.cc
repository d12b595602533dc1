#include "net/prefix_affinity.h"

#include <algorithm>

namespace millrace::net {

PrefixAffinity::Trail PrefixAffinity::trail(std::span<const std::int32_t> tokens) {
  Trail trail;
  trail.reserve(tokens.size() / kStride);
  std::uint64_t hash = 0;
  for (std::size_t i = 0; i + kStride <= tokens.size(); i += kStride) {
    // FNV-1a of whole tokens, then mixed so that its high bits matter too.
    for (const std::int32_t token : tokens.subspan(i, kStride)) {
      hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x100000001b3;
    }
    hash ^= hash >> 32;
    trail.push_back(hash);
  }
  return trail;
}

void PrefixAffinity::note(const Trail& trail, const std::string& cell_id) {
  auto name = std::ranges::find(cells_, cell_id);
  if (name == cells_.end()) {
    if (cells_.size() == kMaxNames) {
      cells_.clear();
      entries_.clear();
    }
    name = cells_.insert(cells_.end(), cell_id);
  }
  const auto cell = static_cast<std::uint32_t>(name - cells_.begin());
  auto& latest = entries_.get<0>();
  auto& by_hash = entries_.get<1>();
  // The shortest last, so that it is forgotten last: ends go before beginnings.
  for (std::size_t i = trail.size(); i-- > 0;) {
    if (const auto it = by_hash.find(trail[i]); it != by_hash.end()) by_hash.erase(it);
    latest.push_front({trail[i], cell});
    if (entries_.size() > capacity_) latest.pop_back();
  }
}

const std::string* PrefixAffinity::find(const Trail& trail) const {
  const auto& by_hash = entries_.get<1>();
  for (std::size_t i = trail.size(); i-- > 0;) {
    if (const auto it = by_hash.find(trail[i]); it != by_hash.end()) return &cells_[it->cell];
  }
  return nullptr;
}

}  // namespace millrace::net
