#include "worker/step_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "kernels/kv_write.h"

namespace millrace {

namespace {

template <class... Args>
[[noreturn]] void bad_plan(fmt::format_string<Args...> format, Args&&... args) {
  throw std::runtime_error("step plan: " + fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

StepBatch::StepBatch(const BatchLimits& limits)
    : limits_(limits), slots_(limits.max_sequences), saved_(limits.snapshots) {
  const std::uint32_t table =
      (limits.max_context_tokens + limits.block_tokens - 1) / limits.block_tokens;
  for (SlotState& slot : slots_) slot.blocks.reserve(table);
  for (auto* per_token : {&ids_, &positions_, &sequences_}) per_token->reserve(limits.max_tokens);
  kv_slots_.reserve(limits.max_tokens);
  logit_rows_.reserve(limits.max_tokens);
  tables_.reserve(limits.max_sequences);
  segments_.reserve(limits.max_sequences);
  state_moves_.reserve(limits.max_sequences);
}

void StepBatch::load(const LanePlan& plan) {
  for (auto* per_token : {&ids_, &positions_, &sequences_}) per_token->clear();
  kv_slots_.clear();
  logit_rows_.clear();
  tables_.clear();
  segments_.clear();
  state_moves_.clear();
  saved_.assign(saved_.size(), false);
  for (const SequenceStart& start : plan.starts) {
    if (start.slot >= limits_.max_sequences)
      bad_plan("slot {} of {}", start.slot, limits_.max_sequences);
    SlotState& slot = slots_[start.slot];
    slot.bound = slot.fresh = true;
    slot.length = 0;
    slot.drew = false;
    slot.drawn = kTokenOfSlot;
    slot.blocks.clear();
  }
  for (const Chunk& chunk : plan.chunks) {
    check_chunk(chunk);
    check_snapshots(chunk);
    load_chunk(chunk);
  }
}

std::size_t StepBatch::blocks_of(const Chunk& chunk) const {
  const std::size_t end = std::max<std::size_t>(chunk.position + chunk.tokens.size(), chunk.cached);
  return (end + limits_.block_tokens - 1) / limits_.block_tokens;
}

void StepBatch::check_chunk(const Chunk& chunk) const {
  if (chunk.slot >= limits_.max_sequences)
    bad_plan("slot {} of {}", chunk.slot, limits_.max_sequences);
  const SlotState& slot = slots_[chunk.slot];
  const std::size_t n = chunk.tokens.size();
  if (!slot.bound) bad_plan("slot {} was never started", chunk.slot);
  if (n == 0) bad_plan("a chunk without tokens for slot {}", chunk.slot);
  const bool skips = chunk.position > slot.length && chunk.position <= chunk.cached;
  if (chunk.position != slot.length && !skips) {
    bad_plan("slot {} goes on at {} instead of {}", chunk.slot, chunk.position, slot.length);
  }
  const std::size_t end = std::max<std::size_t>(chunk.position + n, chunk.cached);
  if (end > limits_.max_context_tokens) {
    bad_plan("slot {} grows to {} tokens, more than the context of {}", chunk.slot, end,
             limits_.max_context_tokens);
  }
  if (ids_.size() + n > limits_.max_tokens) bad_plan("more than {} tokens", limits_.max_tokens);
  const std::size_t need = blocks_of(chunk);
  if (chunk.new_blocks.size() > need || need - chunk.new_blocks.size() > slot.blocks.size()) {
    bad_plan("slot {} has {} blocks and gets {} for {} tokens", chunk.slot, slot.blocks.size(),
             chunk.new_blocks.size(), end);
  }
  if (need < slot.blocks.size()) {
    bad_plan("slot {} has {} blocks for {} tokens", chunk.slot, slot.blocks.size(), end);
  }
  for (const BlockId block : chunk.new_blocks) {
    if (block >= limits_.blocks) bad_plan("block {} of {}", block, limits_.blocks);
  }
  for (const std::int32_t id : chunk.tokens) {
    if (id == kTokenOfSlot && limits_.token_of_slot) {
      if (n != 1 || !slot.drew) bad_plan("slot {} has drawn no token to go on with", chunk.slot);
      continue;
    }
    if (id < 0 || id >= limits_.vocab_size) bad_plan("token {} of {}", id, limits_.vocab_size);
  }
  if (!chunk.prompt_targets.empty() && chunk.prompt_targets.size() != n) {
    bad_plan("{} prompt targets for {} tokens", chunk.prompt_targets.size(), n);
  }
  for (const std::int32_t id : chunk.prompt_targets) {
    if (id < -1 || id >= limits_.vocab_size)
      bad_plan("prompt target {} of {}", id, limits_.vocab_size);
  }
  for (const kernels::ConvSegment& segment : segments_) {
    if (segment.slot == chunk.slot) bad_plan("slot {} twice in one step", chunk.slot);
  }
}

static_assert(kMaxStateSaves == kernels::kConvSaves);

void StepBatch::check_snapshots(const Chunk& chunk) {
  if (chunk.load != kNoSnapshot && chunk.load >= limits_.snapshots) {
    bad_plan("slot {} loads snapshot {} of {}", chunk.slot, chunk.load, limits_.snapshots);
  }
  if (chunk.saves.size() > kMaxStateSaves) {
    bad_plan("slot {} saves its state {} times", chunk.slot, chunk.saves.size());
  }
  const std::size_t end = chunk.position + chunk.tokens.size();
  for (const StateSave& save : chunk.saves) {
    if (save.snapshot >= limits_.snapshots) {
      bad_plan("slot {} saves snapshot {} of {}", chunk.slot, save.snapshot, limits_.snapshots);
    }
    if (saved_[save.snapshot]) bad_plan("snapshot {} is saved twice", save.snapshot);
    saved_[save.snapshot] = true;
    if (save.position <= chunk.position || save.position > end || save.position < chunk.cached) {
      bad_plan("slot {} saves its state at {} in tokens {} to {}, cached to {}", chunk.slot,
               save.position, chunk.position, end, chunk.cached);
    }
  }
}

void StepBatch::load_chunk(const Chunk& chunk) {
  SlotState& slot = slots_[chunk.slot];
  slot.blocks.resize(blocks_of(chunk) - chunk.new_blocks.size());
  slot.blocks.insert(slot.blocks.end(), chunk.new_blocks.begin(), chunk.new_blocks.end());
  const auto row_begin = static_cast<std::uint32_t>(ids_.size());
  const auto n = static_cast<std::uint32_t>(chunk.tokens.size());
  const auto sequence = static_cast<std::int32_t>(tables_.size());
  tables_.push_back(slot.blocks.data());
  segments_.push_back({row_begin, n, chunk.slot});
  for (std::size_t i = 0; i < chunk.saves.size(); ++i) {
    segments_.back().saves[i] = {chunk.saves[i].position - chunk.position,
                                 std::int64_t{limits_.max_sequences} + chunk.saves[i].snapshot};
  }
  if (chunk.load != kNoSnapshot) {
    state_moves_.push_back({chunk.slot, std::int64_t{limits_.max_sequences} + chunk.load});
  } else if (slot.fresh) {
    state_moves_.push_back({chunk.slot});
  }
  slot.fresh = false;
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t position = chunk.position + i;
    ids_.push_back(chunk.tokens[i] == kTokenOfSlot ? slot.drawn : chunk.tokens[i]);
    positions_.push_back(static_cast<std::int32_t>(position));
    sequences_.push_back(sequence);
    const BlockId block = slot.blocks[position / limits_.block_tokens];
    kv_slots_.push_back(position < chunk.cached ? kernels::kNoKvSlot
                                                : std::int64_t{block} * limits_.block_tokens +
                                                      position % limits_.block_tokens);
    const std::int32_t target = chunk.prompt_targets.empty() ? -1 : chunk.prompt_targets[i];
    const bool sample = chunk.sample && i + 1 == n;
    if (sample || target >= 0) {
      logit_rows_.push_back({row_begin + i, chunk.slot, position + 1, sample, target});
    }
  }
  slot.length = chunk.position + n;
  slot.drew = chunk.sample;
}

}  // namespace millrace
