// Scheduler: what a sequence need not compute because its lane has it.
#include <algorithm>

#include "config/check.h"
#include "coordinator/scheduler.h"

namespace millrace {

std::span<const std::int32_t> Scheduler::findable(const Sequence& sequence) const {
  const bool every_token =
      sequence.request.sampling.prompt_logprobs && !sequence.prompt_logprobs_sent;
  if (!limits_.prefix_cache || every_token) return {};
  return std::span(sequence.tokens).first(sequence.tokens.size() - 1);
}

Scheduler::Skip Scheduler::find_skip(const Lane& lane, const Sequence& sequence,
                                     std::uint32_t blocks) const {
  auto found = sequence.blocks.find(lane.pool, findable(sequence));
  found.resize(std::min<std::size_t>(found.size(), blocks));
  const std::uint32_t known = sequence.blocks.published();
  const std::uint32_t end =
      (known + static_cast<std::uint32_t>(found.size())) * limits_.block_tokens;
  std::uint32_t begin = end - std::min(end, limits_.state_tokens);
  SnapshotId load = kNoSnapshot;
  for (auto i = static_cast<std::uint32_t>(found.size()); i-- > 0;) {
    const std::uint32_t at = (known + i + 1) * limits_.block_tokens;
    if (at <= begin) break;
    const auto snapshot = lane.snapshots.find(found[i].node, next_step_);
    if (!snapshot) continue;
    begin = at;
    load = *snapshot;
    break;
  }
  if (begin <= sequence.scheduled) return {{}, sequence.scheduled, sequence.cached};
  return {std::move(found), begin, end, load};
}

void Scheduler::take(Sequence& sequence, const Skip& skip) {
  Lane& lane = lanes_[sequence.lane];
  sequence.blocks.adopt(lane.pool, skip.found);
  if (skip.load != kNoSnapshot) lane.snapshots.touch(skip.load);
  if (sequence.computed == 0) {
    prefix_hit_tokens_ += skip.begin - sequence.scheduled;
    prefix_rebuilt_tokens_ += skip.cached - skip.begin;
  }
  if (!sequence.planned) sequence.skipped = skip.begin;
  sequence.scheduled = skip.begin;
  sequence.cached = skip.cached;
  sequence.load = skip.load;
}

void Scheduler::save_states(Sequence& sequence, Chunk& chunk) {
  const std::uint32_t begin = chunk.position;
  const auto end = begin + static_cast<std::uint32_t>(chunk.tokens.size());
  const auto inside = [&](std::uint32_t at) { return at > begin && at <= end; };
  if (inside(chunk.cached)) save_state(sequence, chunk.cached, SaveReason::kWentOn, chunk);
  // The next turn of a conversation goes on behind all that there is now.
  const std::uint32_t fed = sequence.length() - (chunk.sample ? 1 : 0);
  const std::uint32_t last = fed / limits_.block_tokens * limits_.block_tokens;
  if (!inside(last) || last <= chunk.cached) return;
  const bool prompt = last <= sequence.request.prompt_tokens;
  save_state(sequence, last, prompt ? SaveReason::kPrompt : SaveReason::kAnswer, chunk);
}

void Scheduler::save_state(Sequence& sequence, std::uint32_t position, SaveReason reason,
                           Chunk& chunk) {
  StateSnapshots& snapshots = lanes_[sequence.lane].snapshots;
  const std::uint32_t blocks = position / limits_.block_tokens;
  const bool published = blocks <= sequence.blocks.published();
  if (published && snapshots.holds(sequence.blocks.node(blocks))) return;
  // What is known and not published is forgotten: nobody would find it.
  if (!published && position <= sequence.size()) return;
  // Of what one sequence saves for the same reason only the newest is wanted.
  snapshots.drop(sequence.last_saved[static_cast<std::size_t>(reason)]);
  const std::optional<SnapshotId> snapshot = snapshots.reserve(next_step_);
  if (!snapshot) return;
  chunk.saves.push_back({*snapshot, position});
  sequence.saves.push_back({*snapshot, blocks, reason});
  bind_saves(sequence);
}

void Scheduler::bind_saves(Sequence& sequence) {
  StateSnapshots& snapshots = lanes_[sequence.lane].snapshots;
  std::erase_if(sequence.saves, [&](const PendingSave& save) {
    if (save.blocks > sequence.blocks.published()) return false;
    const PrefixIndex::Node node = sequence.blocks.node(save.blocks);
    snapshots.bind(save.snapshot, node);
    sequence.last_saved[static_cast<std::size_t>(save.reason)] = node;
    return true;
  });
}

std::span<const std::int32_t> Scheduler::computed_tokens(const Sequence& sequence) const {
  if (!limits_.prefix_cache) return {};
  return std::span(sequence.tokens).first(std::min(sequence.scheduled, sequence.size()));
}

void Scheduler::publish(Sequence& sequence) {
  sequence.blocks.publish(lanes_[sequence.lane].pool, computed_tokens(sequence));
  bind_saves(sequence);
}

// None of what it has computed may reach another answer. It may have been preempted meanwhile.
void Scheduler::forget(Sequence& sequence) {
  BlockPool& pool = lanes_[sequence.lane].pool;
  sequence.blocks.forget(pool);
  sequence.scheduled = sequence.cached = 0;
  for (const PrefixIndex::Entry& entry : sequence.blocks.find(pool, sequence.tokens)) {
    pool.forget(std::span(&entry.block, 1));
  }
}

// All or nothing: a sequence that finds no room holds no more than before.
bool Scheduler::add_prefill_chunk(Sequence& sequence, std::uint32_t most, LaneDraft& draft) {
  BlockPool& pool = lanes_[sequence.lane].pool;
  // What a plan says of blocks stays in proportion to its tokens; the rest comes with the next one.
  const Skip skip =
      find_skip(lanes_[sequence.lane], sequence, limits_.max_step_tokens - draft.adopted_blocks);
  const std::uint32_t tokens =
      std::min({most, limits_.prefill_chunk_tokens, sequence.size() - skip.begin});
  if (!skip.found.empty()) {
    std::vector<BlockId> held;
    for (const PrefixIndex::Entry& entry : skip.found) {
      pool.hold(entry.block);
      held.push_back(entry.block);
    }
    const auto have = static_cast<std::uint32_t>(sequence.blocks.published() + held.size());
    const std::uint32_t need = blocks_for(std::max(skip.begin + tokens, skip.cached));
    if (!make_room(sequence, need - have, draft)) {
      pool.release(held);
      return false;
    }
    take(sequence, skip);
    draft.adopted_blocks += static_cast<std::uint32_t>(held.size());
    const bool added = add_chunk(sequence, tokens, draft);
    CHECK(added, "sequence {} has no room for {} blocks", sequence.request.id, need);
  } else if (!add_chunk(sequence, tokens, draft)) {
    return false;
  }
  draft.prefill_tokens += tokens;
  prompt_tokens_ += tokens;
  return true;
}

}  // namespace millrace
