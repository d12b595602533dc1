// Continuous batching: which tokens of which sequences make the next step.
//
// Pure: no clock, no threads, no I/O; the same calls in the same order give the same plans. One
// scheduler serves a cell of P stages x E lanes. Every lane runs its own sequences; all lanes and
// stages execute every plan, in order, so a block or slot freed here may be handed out again in the
// next plan even while earlier plans are in flight.
//
// Pipeline: running sequences are pinned to one of P decode cohorts. A plan carries the decodes of
// one cohort, whose tokens are known when its previous plan has come back, so P plans can be in
// flight. Prefill chunks need no result and ride on any plan.
//
// Asynchronous (one stage): plan n + 1 is made while plan n is in flight, so that the workers find
// the next step when one ends. A sequence whose token plan n draws goes on with kTokenOfSlot. Its
// number of tokens is known, so a limit is never passed; a stop token is found when plan n + 1 has
// gone out already: what that one draws for the sequence is dropped, and its blocks are free for
// the plans after it, which the workers execute later. At most one token of a sequence is unknown
// when a plan is made. A preempted sequence waits until it is known.
//
// Prefix cache: what a plan computes, later plans use, and sequences behind it in the same plan,
// since each layer writes the KV of all its tokens before any of them looks back. So a sequence
// goes on behind the longest beginning that its lane holds, at its first chunk or at any later one:
// several that begin alike and arrive together divide the work of it. The state of the short
// convolutions is kept where another sequence is likely to go on: at the last block's end of a
// prompt and of what is generated behind it, and where one has gone on. Elsewhere the
// `state_tokens` tokens before are run again, over the cached KV and without writing any, which
// rebuilds it exactly (worker/step.h).
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "config/cluster_config.h"
#include "config/result.h"
#include "coordinator/block_pool.h"
#include "coordinator/request.h"
#include "coordinator/sequence.h"
#include "coordinator/state_snapshots.h"
#include "worker/step.h"

namespace millrace {

struct SchedulerLimits {
  std::uint32_t stages = 1;
  std::uint32_t lanes = 1;
  std::uint32_t max_sequences = 16;  // slots per lane
  std::uint32_t blocks = 0;          // KV blocks per lane
  std::uint32_t block_tokens = 32;
  std::uint32_t max_step_tokens = 512;       // per lane and plan, decodes and prefill together
  std::uint32_t prefill_chunk_tokens = 256;  // per sequence and plan
  std::uint32_t max_context_tokens = 4096;
  std::uint32_t max_waiting = 1024;  // sequences beyond the slots; above it submit() refuses
  std::int32_t vocab_size = 0;
  ExchangeChoice exchange = ExchangeChoice::kAuto;
  bool async = false;  // two plans in flight; with one stage only (CHECK)
  bool prefix_cache = false;
  std::uint32_t snapshots = 0;  // of conv state per lane
  // How many tokens rebuild the state behind them: (L - 1) for each conv layer of the model.
  std::uint32_t state_tokens = 0;
  // What the workers' samplers have room for, where that is less than a request may ask for.
  std::int32_t max_logprobs = std::numeric_limits<std::int32_t>::max();
  std::int32_t max_logit_bias = std::numeric_limits<std::int32_t>::max();
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // Queues a sequence, or refuses one that can never run (context, KV capacity, token ids,
  // duplicate id) or that finds the waiting queue full.
  Result<void> submit(SequenceRequest request);

  // Ends a sequence at once; it is in no later plan. Unknown ids are ignored (it may have just
  // ended). Returns true when the sequence existed.
  bool cancel(RequestId id);

  // Sequences that a plan carried for the first time since the last call.
  std::vector<RequestId> take_first_planned() { return std::exchange(first_planned_, {}); }

  // The next plan, or nullopt when nothing can be scheduled now: no work, or P plans in flight (two
  // when asynchronous).
  std::optional<StepPlan> next_plan();

  // While sequences decode, in whatever lane, no lane takes more prompt tokens than this into a
  // plan.
  void limit_prefill(std::uint32_t tokens) { prefill_limit_ = tokens; }

  // A plan without tokens, which every worker executes and answers like any other: shows that all
  // of them still do. Only while no plan is in flight (CHECK).
  StepPlan probe_plan();

  // Events of one lane's result, in chunk order. The plan leaves flight with its last lane's
  // result. A result that belongs to no plan in flight is an error of the peer.
  struct Events {
    std::vector<PromptLogprobsEvent> prompt_logprobs;
    std::vector<TokenEvent> tokens;
    bool plan_finished = false;
  };
  Result<Events> on_result(const StepResult& result);

  bool idle() const { return sequences_.empty() && in_flight_.empty(); }
  std::size_t plans_in_flight() const { return in_flight_.size(); }

  // Fills the fields that the scheduler knows: load, counters since start.
  CellStatus status() const;

 private:
  // What a plan in flight asked of a lane: the sequences whose results will come, by chunk.
  struct IssuedChunk {
    RequestId id;
    std::uint64_t arrival;  // with `id`, tells a sequence from a later one under the same id
    bool sample;
  };
  struct IssuedPlan {
    std::uint32_t cohort = 0;
    std::vector<std::vector<IssuedChunk>> lanes;
    std::vector<bool> answered;
    std::uint32_t lanes_left = 0;
    // Which sequence held a slot when the plan was issued, for the slots that report prompt
    // log-probabilities.
    std::vector<std::unordered_map<SlotId, IssuedChunk>> by_slot;
  };
  struct Lane {
    explicit Lane(const SchedulerLimits& limits);
    BlockPool pool;
    StateSnapshots snapshots;
    std::vector<SlotId> free_slots;
    std::vector<Sequence*> running;  // in order of admission
    std::vector<std::uint32_t> cohort_size;
  };

  // What a sequence need not compute because its lane has it.
  struct Skip {
    std::vector<PrefixIndex::Entry> found;  // behind its published blocks
    std::uint32_t begin = 0;                // goes on here,
    std::uint32_t cached = 0;               // and writes KV from here on
    SnapshotId load = kNoSnapshot;          // of the state at `begin`
  };

  // One lane's part of a plan under construction.
  struct LaneDraft {
    LanePlan plan;
    std::vector<IssuedChunk> issued;
    std::uint32_t tokens = 0;
    std::uint32_t prefill_tokens = 0;  // of these
    std::uint32_t adopted_blocks = 0;
  };

  Result<void> check(const SequenceRequest& request) const;
  Result<void> check_sampling(const SamplingParams& sampling) const;
  std::uint32_t blocks_for(std::uint32_t tokens) const;
  bool cohort_in_flight(std::uint32_t cohort) const;
  // Whether a sequence of so many tokens has all that it may have.
  bool full(const Sequence& sequence, std::uint32_t length) const;
  bool may_decode(const Sequence& sequence) const;

  void admit_waiting();
  std::optional<std::uint32_t> pick_lane(const Sequence& sequence) const;
  // The tokens of a sequence that it may find computed: not the last one, which is computed in any
  // case to draw from, and none while the log-probabilities of each are wanted.
  std::span<const std::int32_t> findable(const Sequence& sequence) const;
  // Nothing is found where the sequence would go on no further than it is. At most `blocks`.
  Skip find_skip(const Lane& lane, const Sequence& sequence, std::uint32_t blocks) const;
  void take(Sequence& sequence, const Skip& skip);
  // Where the chunk, just drafted, is to leave the state for others.
  void save_states(Sequence& sequence, Chunk& chunk);
  void save_state(Sequence& sequence, std::uint32_t position, SaveReason reason, Chunk& chunk);
  void bind_saves(Sequence& sequence);
  // Tokens that are in plans that have gone out or are about to.
  std::span<const std::int32_t> computed_tokens(const Sequence& sequence) const;
  void publish(Sequence& sequence);
  void forget(Sequence& sequence);
  void start_running(Sequence& sequence, std::uint32_t lane);
  void stop_running(Sequence& sequence);
  void preempt(Sequence& sequence);
  void erase(Sequence& sequence);

  bool any_decodes() const;
  LaneDraft draft_lane(std::uint32_t lane, std::uint32_t cohort, std::uint32_t prefill_tokens);
  bool add_chunk(Sequence& sequence, std::uint32_t tokens, LaneDraft& draft);
  // Of at most `most` tokens.
  bool add_prefill_chunk(Sequence& sequence, std::uint32_t most, LaneDraft& draft);
  bool make_room(Sequence& sequence, std::uint32_t blocks, const LaneDraft& draft);
  std::vector<std::int32_t> prompt_targets(const Sequence& sequence, std::uint32_t tokens) const;
  StepPlan issue(std::uint32_t cohort, std::vector<LaneDraft> drafts);

  Sequence* find(const IssuedChunk& chunk);
  Result<void> check_result(const StepResult& result) const;
  void take_prompt_logprobs(const IssuedPlan& plan, const StepResult& result, Events& events);
  void take_sampled(Sequence& sequence, const SampledToken& sampled, Events& events);

  SchedulerLimits limits_;
  std::deque<Lane> lanes_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::deque<Sequence*> waiting_;
  std::map<std::uint64_t, IssuedPlan> in_flight_;  // by step
  std::uint64_t next_step_ = 1;
  std::uint32_t next_cohort_ = 0;
  std::uint64_t arrivals_ = 0;
  std::vector<RequestId> first_planned_;
  std::uint32_t prefill_limit_ = std::numeric_limits<std::uint32_t>::max();

  std::uint64_t steps_finished_ = 0;
  std::uint64_t preemptions_ = 0;
  std::uint64_t prompt_tokens_ = 0;
  std::uint64_t generated_tokens_ = 0;
  std::uint64_t recomputed_tokens_ = 0;
  std::uint64_t prefix_queried_tokens_ = 0;
  std::uint64_t prefix_hit_tokens_ = 0;
  std::uint64_t prefix_rebuilt_tokens_ = 0;
  std::uint64_t corrupted_sequences_ = 0;
};

}  // namespace millrace
