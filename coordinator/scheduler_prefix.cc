// Scheduler: what a sequence need not compute because its lane has it.
#include <algorithm>

#include "coordinator/scheduler.h"

namespace millrace {

std::span<const std::int32_t> Scheduler::findable(const Sequence& sequence) const {
  const bool every_token =
      sequence.request.sampling.prompt_logprobs && !sequence.prompt_logprobs_sent;
  if (!limits_.prefix_cache || every_token) return {};
  return std::span(sequence.tokens).first(sequence.tokens.size() - 1);
}

std::vector<PrefixIndex::Entry> Scheduler::findable_in(const Lane& lane,
                                                       const Sequence& sequence) const {
  auto found = sequence.blocks.find(lane.pool, findable(sequence));
  const std::size_t blocks = sequence.blocks.published() + found.size();
  if (blocks * limits_.block_tokens <= limits_.state_tokens) found.clear();
  return found;
}

Scheduler::Skip Scheduler::find_skip(const Sequence& sequence, const LaneDraft& draft) const {
  Skip skip{findable_in(lanes_[sequence.lane], sequence), sequence.scheduled, sequence.cached};
  // What a plan says of blocks stays in proportion to its tokens; the rest comes with the next one.
  const std::uint32_t room = limits_.max_step_tokens - draft.adopted_blocks;
  skip.found.resize(std::min<std::size_t>(skip.found.size(), room));
  const auto blocks = static_cast<std::uint32_t>(sequence.blocks.published() + skip.found.size());
  const std::uint32_t end = blocks * limits_.block_tokens;
  const std::uint32_t begin = end - std::min(end, limits_.state_tokens);
  if (begin <= sequence.scheduled) {
    skip.found.clear();
  } else {
    skip.begin = begin;
    skip.cached = end;
  }
  return skip;
}

void Scheduler::take(Sequence& sequence, const Skip& skip) {
  sequence.blocks.adopt(lanes_[sequence.lane].pool, skip.found);
  if (sequence.computed == 0) prefix_hit_tokens_ += skip.begin - sequence.scheduled;
  if (!sequence.planned) sequence.skipped = skip.begin;
  sequence.scheduled = skip.begin;
  sequence.cached = skip.cached;
}

std::span<const std::int32_t> Scheduler::computed_tokens(const Sequence& sequence) const {
  if (!limits_.prefix_cache) return {};
  return std::span(sequence.tokens).first(std::min(sequence.scheduled, sequence.size()));
}

void Scheduler::publish(Sequence& sequence) {
  sequence.blocks.publish(lanes_[sequence.lane].pool, computed_tokens(sequence));
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
bool Scheduler::add_prefill_chunk(Sequence& sequence, LaneDraft& draft) {
  BlockPool& pool = lanes_[sequence.lane].pool;
  const Skip skip = find_skip(sequence, draft);
  const std::uint32_t tokens =
      std::min({limits_.max_step_tokens - draft.tokens, limits_.prefill_chunk_tokens,
                sequence.size() - skip.begin});
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
  }
  if (!add_chunk(sequence, tokens, draft)) return false;
  draft.prefill = true;
  prompt_tokens_ += tokens;
  return true;
}

}  // namespace millrace
