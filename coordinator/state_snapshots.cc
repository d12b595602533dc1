#include "coordinator/state_snapshots.h"

#include "config/check.h"

namespace millrace {

StateSnapshots::StateSnapshots(std::uint32_t count) : snapshots_(count) {
  for (SnapshotId s = 0; s < count; ++s) make_idle(s, ++now_);
}

std::optional<SnapshotId> StateSnapshots::find(Node node, std::uint64_t step) const {
  const auto it = by_node_.find(node);
  if (it == by_node_.end() || snapshots_[it->second].saved >= step) return std::nullopt;
  return it->second;
}

std::optional<SnapshotId> StateSnapshots::reserve(std::uint64_t step) {
  for (const auto& [used, id] : idle_) {
    Snapshot& snapshot = snapshots_[id];
    if (snapshot.saved >= step) continue;
    if (snapshot.node != PrefixIndex::kRoot) by_node_.erase(snapshot.node);
    snapshot.node = PrefixIndex::kRoot;
    snapshot.saved = step;
    const SnapshotId reserved = id;
    idle_.erase(used);
    return reserved;
  }
  return std::nullopt;
}

void StateSnapshots::bind(SnapshotId snapshot, Node node) {
  CHECK(node != PrefixIndex::kRoot, "snapshot {}", snapshot);
  if (!by_node_.emplace(node, snapshot).second) {
    release(snapshot);
    return;
  }
  snapshots_[snapshot].node = node;
  make_idle(snapshot, ++now_);
}

void StateSnapshots::release(SnapshotId snapshot) { make_idle(snapshot, --dropped_); }

void StateSnapshots::touch(SnapshotId snapshot) {
  idle_.erase(snapshots_[snapshot].used);
  make_idle(snapshot, ++now_);
}

void StateSnapshots::drop(Node node) {
  const auto it = by_node_.find(node);
  if (it == by_node_.end()) return;
  idle_.erase(snapshots_[it->second].used);
  make_idle(it->second, --dropped_);
}

void StateSnapshots::make_idle(SnapshotId snapshot, std::int64_t used) {
  snapshots_[snapshot].used = used;
  idle_.emplace(used, snapshot);
}

}  // namespace millrace
