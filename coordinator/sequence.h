// One sequence as the scheduler sees it: its tokens, and how far they have been scheduled.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "coordinator/request.h"
#include "coordinator/sequence_blocks.h"

namespace millrace {

enum class SequenceState : std::uint8_t { kWaiting, kRunning };

// Why a plan saves conv state: a sequence has gone on there behind what others had computed, or its
// prompt ends there, or what is generated.
enum class SaveReason : std::uint8_t { kWentOn, kPrompt, kAnswer };

// Conv state that a plan saves behind a sequence's first `blocks`, whose tokens are not all known.
struct PendingSave {
  SnapshotId snapshot = 0;
  std::uint32_t blocks = 0;
  SaveReason reason = SaveReason::kWentOn;
};

struct Sequence {
  explicit Sequence(std::uint32_t block_tokens) : blocks(block_tokens) {}

  SequenceRequest request;
  std::vector<std::int32_t> tokens;  // prompt and everything generated so far
  SequenceState state = SequenceState::kWaiting;
  std::uint64_t arrival = 0;  // order of submission; preemption takes the youngest first

  // Valid while running.
  std::uint32_t lane = 0;
  SlotId slot = 0;
  std::uint32_t cohort = 0;
  SequenceBlocks blocks;
  std::uint32_t scheduled = 0;    // tokens [0, scheduled) are in a plan that was issued
  std::uint32_t cached = 0;       // KV of tokens [0, cached) comes from another sequence's plans
  SnapshotId load = kNoSnapshot;  // state with which the next chunk goes on behind what it skips
  bool announced = false;         // its SequenceStart was issued
  std::vector<PendingSave> saves;
  std::array<PrefixIndex::Node, 3> last_saved{};  // by reason

  bool planned = false;               // some plan has carried it
  std::uint32_t computed = 0;         // tokens that had been scheduled when it was last preempted
  std::uint32_t plans_in_flight = 0;  // issued plans whose result names this sequence
  std::uint32_t unknown = 0;          // tokens that plans in flight draw: they follow `tokens`
  std::uint32_t skipped = 0;          // tokens that were there when it first ran
  bool skipped_told = false;          // an event has said so
  PromptLogprobsEvent prompt_logprobs;
  bool prompt_logprobs_sent = false;

  std::uint32_t size() const { return static_cast<std::uint32_t>(tokens.size()); }
  std::uint32_t generated() const { return size() - request.prompt_tokens; }
  // With the tokens that are being drawn.
  std::uint32_t length() const { return size() + unknown; }
  // A sequence decodes when its only unscheduled token is one it has just generated, or generates.
  bool decoding() const { return scheduled + 1 == length() && length() > request.prompt_tokens; }
};

}  // namespace millrace
