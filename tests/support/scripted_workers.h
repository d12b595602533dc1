// Workers for tests of the coordinator: they keep what real ones keep (block tables, the KV in the
// blocks, snapshots of state), check that every plan is consistent with it, and "sample" a token
// that is a hash of the whole sequence, which they only know from their blocks. So the tokens of a
// sequence are known beforehand, whatever the scheduler does.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "coordinator/scheduler.h"
#include "worker/step.h"

namespace millrace::testing {

inline std::int32_t hashed_token(const std::vector<std::int32_t>& tokens, std::int32_t vocab) {
  std::uint64_t h = 1469598103934665603ULL;
  for (const std::int32_t t : tokens)
    h = (h ^ static_cast<std::uint64_t>(t + 1)) * 1099511628211ULL;
  return static_cast<std::int32_t>((h >> 17) % static_cast<std::uint64_t>(vocab));
}

// Sequences that workers break, where they break any: one in 60 of all tokens is not drawn.
inline bool breaks(const std::vector<std::int32_t>& tokens) {
  return hashed_token(tokens, 60) == 0;
}

class ScriptedWorkers {
 public:
  explicit ScriptedWorkers(const SchedulerLimits& limits)
      : limits_(limits), slots_(limits.lanes), kv_(limits.lanes), snapshots_(limits.lanes) {}

  // Executes a plan and returns the results of all lanes, in lane order.
  std::vector<StepResult> execute(const StepPlan& plan) {
    EXPECT_EQ(plan.step, last_step_ + 1);
    last_step_ = plan.step;
    EXPECT_EQ(plan.lanes.size(), limits_.lanes);
    std::vector<StepResult> results;
    for (std::uint32_t lane = 0; lane < limits_.lanes; ++lane) {
      results.push_back(execute_lane(plan, lane));
    }
    return results;
  }

  void break_some() { breaking_ = true; }

  std::uint64_t tokens_fed() const { return tokens_fed_; }
  std::uint64_t states_loaded() const { return states_loaded_; }
  std::uint64_t states_saved() const { return states_saved_; }
  std::uint64_t tokens_of_slots() const { return tokens_of_slots_; }  // kTokenOfSlot, of those
  std::uint32_t most_step_tokens() const { return most_step_tokens_; }

 private:
  // What a position of a block holds: KV depends on all tokens up to its own.
  using Kv = std::vector<std::int32_t>;
  struct Slot {
    std::vector<std::int32_t> tokens;
    std::vector<BlockId> blocks;
    std::uint32_t state_begin = 0;     // rows before this one have not gone into the conv state
    std::vector<std::int32_t> loaded;  // what this step's chunk takes from a snapshot
    bool bound = false;
    bool drew = false;  // the chunk before
    std::int32_t drawn = 0;
  };

  StepResult execute_lane(const StepPlan& plan, std::uint32_t lane) {
    StepResult result;
    result.step = plan.step;
    result.lane = lane;
    const LanePlan& work = plan.lanes[lane];
    for (const SequenceStart& start : work.starts) {
      Slot& slot = slots_[lane][start.slot];
      slot = Slot{};
      slot.bound = true;
    }
    for (const Chunk& chunk : work.chunks) {
      if (chunk.load == kNoSnapshot) continue;
      EXPECT_LT(chunk.load, limits_.snapshots);
      slots_[lane][chunk.slot].loaded = snapshots_[lane][chunk.load];
    }
    std::set<SnapshotId> saved;
    for (const Chunk& chunk : work.chunks) {
      EXPECT_LE(chunk.saves.size(), kMaxStateSaves);
      for (const StateSave& save : chunk.saves) {
        EXPECT_LT(save.snapshot, limits_.snapshots);
        EXPECT_TRUE(saved.insert(save.snapshot).second) << "saved twice in one plan";
      }
    }
    std::set<SlotId> seen;
    std::uint32_t step_tokens = 0;
    std::size_t new_blocks = 0;
    for (const Chunk& chunk : work.chunks) {
      new_blocks += chunk.new_blocks.size();
      EXPECT_TRUE(seen.insert(chunk.slot).second) << "a slot twice in one plan";
      execute_chunk(chunk, lane, result);
      step_tokens += static_cast<std::uint32_t>(chunk.tokens.size());
    }
    EXPECT_LE(step_tokens, limits_.max_step_tokens);
    EXPECT_LE(step_tokens, plan.bucket);
    EXPECT_LE(new_blocks, 2 * limits_.max_step_tokens) << "devices have room for no more";
    most_step_tokens_ = std::max(most_step_tokens_, step_tokens);
    return result;
  }

  // What the blocks hold between what was fed and the chunk's first token.
  void read_skipped(const Chunk& chunk, std::uint32_t lane, Slot& slot) {
    if (chunk.position == slot.tokens.size()) return;
    EXPECT_GT(chunk.position, slot.tokens.size()) << "a repeat in what is fed";
    EXPECT_LE(chunk.position, chunk.cached) << "a gap in what is fed";
    slot.state_begin = chunk.position;
    while (slot.tokens.size() < chunk.position) {
      const Kv& kv = kv_at(lane, slot, slot.tokens.size());
      ASSERT_EQ(kv.size(), slot.tokens.size() + 1) << "nothing was computed here";
      slot.tokens.push_back(kv.back());
    }
  }

  Kv& kv_at(std::uint32_t lane, const Slot& slot, std::size_t position) {
    return kv_[lane]
              [{slot.blocks.at(position / limits_.block_tokens), position % limits_.block_tokens}];
  }

  void execute_chunk(const Chunk& chunk, std::uint32_t lane, StepResult& result) {
    EXPECT_LT(chunk.slot, limits_.max_sequences);
    Slot& slot = slots_[lane][chunk.slot];
    EXPECT_TRUE(slot.bound);
    EXPECT_FALSE(chunk.tokens.empty());
    const std::size_t end =
        std::max<std::size_t>(chunk.position + chunk.tokens.size(), chunk.cached);
    const std::size_t blocks = (end + limits_.block_tokens - 1) / limits_.block_tokens;
    ASSERT_LE(chunk.new_blocks.size(), blocks);
    EXPECT_LE(blocks - chunk.new_blocks.size(), slot.blocks.size());
    slot.blocks.resize(blocks - chunk.new_blocks.size());
    for (const BlockId block : chunk.new_blocks) {
      EXPECT_LT(block, limits_.blocks);
      slot.blocks.push_back(block);
    }
    read_skipped(chunk, lane, slot);
    if (chunk.load != kNoSnapshot) {
      EXPECT_EQ(slot.loaded, slot.tokens) << "the state of something else";
      slot.state_begin = 0;
      ++states_loaded_;
    }
    std::size_t saved = 0;
    for (const std::int32_t token : chunk.tokens) {
      if (token == kTokenOfSlot) {
        EXPECT_TRUE(limits_.async && slot.drew && chunk.tokens.size() == 1);
        ++tokens_of_slots_;
      }
      // Behind a token that could not be drawn any may come.
      slot.tokens.push_back(token == kTokenOfSlot ? std::max(slot.drawn, 0) : token);
      for (const StateSave& save : chunk.saves) {
        if (save.position != slot.tokens.size()) continue;
        EXPECT_GE(save.position, chunk.cached);
        EXPECT_TRUE(slot.state_begin == 0 ||
                    save.position >= slot.state_begin + limits_.state_tokens);
        snapshots_[lane][save.snapshot] = slot.tokens;
        ++saved;
      }
      const std::size_t position = slot.tokens.size() - 1;
      if (position < chunk.cached) continue;
      // The state before this token is right only when enough tokens have rebuilt it.
      if (slot.state_begin > 0) {
        EXPECT_GE(position, slot.state_begin + limits_.state_tokens);
      }
      kv_at(lane, slot, position) = slot.tokens;
    }
    EXPECT_EQ(saved, chunk.saves.size()) << "positions outside the chunk";
    states_saved_ += saved;
    tokens_fed_ += chunk.tokens.size();
    // Whoever had a block before, or has it too, has not put anything else into it.
    for (std::size_t i = 0; i < slot.tokens.size(); ++i) {
      const Kv& kv = kv_at(lane, slot, i);
      EXPECT_TRUE(std::ranges::equal(kv, std::span(slot.tokens).first(i + 1)))
          << "slot " << chunk.slot << " position " << i;
    }
    if (!chunk.prompt_targets.empty()) {
      EXPECT_EQ(chunk.prompt_targets.size(), chunk.tokens.size());
      for (std::uint32_t i = 0; i < chunk.prompt_targets.size(); ++i) {
        if (chunk.prompt_targets[i] < 0) continue;
        const std::uint32_t position = chunk.position + i + 1;
        result.prompt_logprobs.push_back(
            {chunk.slot,
             position,
             {chunk.prompt_targets[i], -1.0F * static_cast<float>(position)},
             {}});
      }
    }
    slot.drew = chunk.sample;
    if (chunk.sample) {
      slot.drawn = hashed_token(slot.tokens, limits_.vocab_size);
      if (breaking_ && breaks(slot.tokens)) slot.drawn = kNoToken;
      result.sampled.push_back({chunk.slot, {slot.drawn, 0}, {}});
    }
  }

  SchedulerLimits limits_;
  std::vector<std::map<SlotId, Slot>> slots_;
  std::vector<std::map<std::pair<BlockId, std::size_t>, Kv>> kv_;
  std::vector<std::map<SnapshotId, Kv>> snapshots_;  // the tokens whose state each is
  bool breaking_ = false;
  std::uint64_t last_step_ = 0;
  std::uint64_t tokens_fed_ = 0;
  std::uint64_t states_loaded_ = 0, states_saved_ = 0;
  std::uint64_t tokens_of_slots_ = 0;
  std::uint32_t most_step_tokens_ = 0;
};

// What the sequence must become: prompt continued by hashed_token until max_new or a stop token.
inline std::vector<std::int32_t> expected_output(const SequenceRequest& request,
                                                 std::int32_t vocab) {
  std::vector<std::int32_t> tokens = request.tokens;
  while (tokens.size() < request.prompt_tokens + request.max_new_tokens) {
    const std::int32_t next = hashed_token(tokens, vocab);
    tokens.push_back(next);
    const auto generated = tokens.size() - request.prompt_tokens;
    const auto& stops = request.stop_token_ids;
    const bool stop = std::find(stops.begin(), stops.end(), next) != stops.end();
    if (stop && generated > request.min_new_tokens) break;
  }
  return {tokens.begin() + request.prompt_tokens, tokens.end()};
}

inline SequenceRequest make_request(RequestId id, std::uint32_t prompt, std::uint32_t max_new,
                                    std::int32_t vocab) {
  SequenceRequest request;
  request.id = id;
  for (std::uint32_t i = 0; i < prompt; ++i) {
    request.tokens.push_back(
        static_cast<std::int32_t>((id * 31 + i * 7) % static_cast<unsigned>(vocab)));
  }
  request.prompt_tokens = prompt;
  request.max_new_tokens = max_new;
  return request;
}

}  // namespace millrace::testing
