// Which beginnings of sequences the snapshots of conv state of one lane belong to.
//
// A snapshot is reserved when a plan is made that saves into it, and bound once all tokens of its
// beginning are known, which may be a few plans later. The one whose last use is longest ago makes
// room. A beginning whose blocks are gone is not found any more, nor then is its snapshot.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "coordinator/prefix_index.h"
#include "worker/step.h"

namespace millrace {

class StateSnapshots {
 public:
  using Node = PrefixIndex::Node;

  explicit StateSnapshots(std::uint32_t count);

  // The state behind the tokens of `node`, for a plan of step `step`: an earlier one has saved it.
  std::optional<SnapshotId> find(Node node, std::uint64_t step) const;
  bool holds(Node node) const { return by_node_.contains(node); }

  // One for plan `step` to save into, which it does not do yet.
  std::optional<SnapshotId> reserve(std::uint64_t step);
  // What was reserved is the state of `node`; given up where that has one.
  void bind(SnapshotId snapshot, Node node);
  // What was reserved is nobody's.
  void release(SnapshotId snapshot);

  // It counts as used now.
  void touch(SnapshotId snapshot);
  // The state of `node`, if there is one, makes room before all others.
  void drop(Node node);

 private:
  struct Snapshot {
    Node node = PrefixIndex::kRoot;  // while bound
    std::uint64_t saved = 0;         // step that saves it
    std::int64_t used = 0;           // key into idle_
  };
  void make_idle(SnapshotId snapshot, std::int64_t used);

  std::vector<Snapshot> snapshots_;
  std::unordered_map<Node, SnapshotId> by_node_;
  std::map<std::int64_t, SnapshotId> idle_;  // all that are not reserved, next to go first
  std::int64_t now_ = 0, dropped_ = 0;       // count uses up, and drops down
};

}  // namespace millrace
