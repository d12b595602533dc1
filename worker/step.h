// What one step is, as plain values: all that the coordinator and a worker say to each other.
//
// The coordinator sends one StepPlan per step to every worker; workers execute plans in the order
// of `step`. Lane e of the last stage answers with one StepResult per plan. Codec:
// worker/step_codec.h.
#pragma once

#include <cstdint>
#include <vector>

#include "config/sampling_params.h"

namespace millrace {

// A slot names a running sequence inside one lane: its conv state, its block table and its sampling
// state are addressed by it on every stage. Slots are never batch rows.
using SlotId = std::uint32_t;
using BlockId = std::uint32_t;

// Names a place in which a lane keeps a copy of a slot's conv state, for later sequences that begin
// as that one did.
using SnapshotId = std::uint32_t;
inline constexpr SnapshotId kNoSnapshot = ~SnapshotId{0};

// Binds a slot to a new sequence: block table empty, conv state zero unless its first chunk loads
// one, sampling state from `history`.
struct SequenceStart {
  SlotId slot = 0;
  SamplingParams sampling;
  std::uint32_t prompt_tokens = 0;    // the first `prompt_tokens` of `history` are prompt
  std::vector<std::int32_t> history;  // prompt, then tokens generated before a preemption or
                                      // replay; empty unless sampling.uses_history()

  bool operator==(const SequenceStart&) const = default;
};

// In place of a token, alone in its chunk: the one that the slot's chunk before this drew, which
// the coordinator need not know yet. Only a stage that both draws and embeds knows it, so only in
// cells of one stage. Where nothing could be drawn (kNoToken) any token stands for it: the sequence
// is over, and what follows is not used.
inline constexpr std::int32_t kTokenOfSlot = -2;

// From this step on `snapshot` is the conv state behind the tokens before `position`, which is
// above the chunk's own and at most its end. A step saves into a snapshot once. What other chunks
// load from it is what it was before.
struct StateSave {
  SnapshotId snapshot = 0;
  std::uint32_t position = 0;

  bool operator==(const StateSave&) const = default;
};
inline constexpr std::size_t kMaxStateSaves = 2;

// Consecutive tokens of one sequence in this step: a prefill chunk, or one decode token.
//
// A chunk that begins behind the end of the one before, somewhere in [0, cached], leaves out tokens
// whose KV is there already. It names a snapshot of the conv state at `position`, or none: then the
// slot's is that of other tokens. A conv layer's state depends on its last L - 1 inputs, so that
// the tokens of positions below `cached` put it right again, the k-th conv layer's after (L - 1) k
// of them, as long as they only read KV. How many that takes is the coordinator's to know
// (SchedulerLimits::state_tokens).
struct Chunk {
  SlotId slot = 0;
  std::uint32_t position = 0;        // position of tokens[0] in the sequence
  std::uint32_t cached = 0;          // KV of positions below is in the blocks: it is not written
  SnapshotId load = kNoSnapshot;     // becomes the slot's conv state before any layer runs
  std::vector<StateSave> saves;      // at most kMaxStateSaves
  std::vector<std::int32_t> tokens;  // at least one
  // The last blocks of the slot's table, which from now on has room for these tokens and for those
  // cached, and no more. They follow the blocks that stay, and may stand in the place of some.
  std::vector<BlockId> new_blocks;
  bool sample = false;  // draw the token after the last one of this chunk
  std::vector<std::int32_t>
      prompt_targets;  // when not empty: one target per token; report the
                       // log-probability of targets[i] after tokens[i]; -1 skips

  bool operator==(const Chunk&) const = default;
};

struct LanePlan {
  std::vector<SequenceStart> starts;
  std::vector<Chunk> chunks;

  bool operator==(const LanePlan&) const = default;
};

// How tokens travel between the lanes of a stage in this step (parallel/expert_parallel.h). All
// choices give the same bits.
enum class ExchangePath : std::uint8_t { kAllToAllFixed, kAllToAllExact, kAllGather };

struct StepPlan {
  std::uint64_t step = 0;    // 1, 2, 3, ... without gaps within one cell epoch
  std::uint32_t cohort = 0;  // decode cohort in [0, stages)
  ExchangePath exchange = ExchangePath::kAllToAllFixed;
  std::uint32_t bucket = 0;     // no lane has more tokens than this; sizes the fixed exchange
  bool shutdown = false;        // the last plan: workers leave after it
  std::vector<LanePlan> lanes;  // one per lane, possibly with nothing to do

  bool operator==(const StepPlan&) const = default;
};

inline constexpr std::int32_t kNoToken = -1;

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;  // natural logarithm

  bool operator==(const TokenLogprob&) const = default;
};

struct SampledToken {
  SlotId slot = 0;
  TokenLogprob chosen;  // logprob 0 when none was asked for; token kNoToken when the logits
                        // were not finite and nothing could be drawn
  std::vector<TokenLogprob> top;  // likeliest first; ties lowest id first

  bool operator==(const SampledToken&) const = default;
};

struct PromptLogprobs {
  SlotId slot = 0;
  std::uint32_t position = 0;  // of the target token
  TokenLogprob target;
  std::vector<TokenLogprob> top;

  bool operator==(const PromptLogprobs&) const = default;
};

// From lane `lane` of the last stage, chunks in plan order.
struct StepResult {
  std::uint64_t step = 0;
  std::uint32_t lane = 0;
  std::vector<SampledToken> sampled;
  std::vector<PromptLogprobs> prompt_logprobs;

  bool operator==(const StepResult&) const = default;
};

// What a worker has done since it started. Later reports include earlier ones, so that it does no
// harm when one is late. Sent now and then, by every worker.
struct WorkerReport {
  std::uint32_t stage = 0;
  std::uint32_t lane = 0;
  std::uint64_t steps = 0;        // with at least one token in some lane
  std::uint64_t step_ns = 0;      // executing them, the waits below included
  std::uint64_t exchange_ns = 0;  // taking tokens to experts and back, slower lanes' time included
  std::uint64_t pipeline_wait_ns = 0;  // waiting for the stage before
  std::uint32_t first_moe_layer = 0;   // number in the model of the stage's first MoE layer
  std::uint32_t moe_layers = 0;
  std::vector<std::uint64_t>
      expert_rows;  // [moe_layers][slots]: rows that the expert in it has run

  bool operator==(const WorkerReport&) const = default;
};

}  // namespace millrace
