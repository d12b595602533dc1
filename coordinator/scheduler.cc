#include "coordinator/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <tuple>
#include <utility>

#include "config/check.h"

namespace millrace {

Scheduler::Lane::Lane(const SchedulerLimits& limits)
    : pool(limits.blocks, limits.block_tokens),
      snapshots(limits.prefix_cache && limits.state_tokens > 0 ? limits.snapshots : 0),
      cohort_size(limits.stages, 0) {
  for (SlotId slot = limits.max_sequences; slot-- > 0;) free_slots.push_back(slot);
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits) {
  CHECK(limits.stages > 0 && limits.lanes > 0 && limits.max_sequences > 0, "stages={} lanes={}",
        limits.stages, limits.lanes);
  CHECK(!limits.async || limits.stages == 1, "async with {} stages", limits.stages);
  CHECK(limits.blocks > 0 && limits.block_tokens > 0 && limits.max_step_tokens > 0 &&
            limits.prefill_chunk_tokens > 0,
        "blocks={} block_tokens={}", limits.blocks, limits.block_tokens);
  for (std::uint32_t lane = 0; lane < limits.lanes; ++lane) lanes_.emplace_back(limits);
}

std::uint32_t Scheduler::blocks_for(std::uint32_t tokens) const {
  return (tokens + limits_.block_tokens - 1) / limits_.block_tokens;
}

Result<void> Scheduler::check_sampling(const SamplingParams& sampling) const {
  if (Result<void> ok = check_sampling_params(sampling, limits_.vocab_size); !ok) return ok;
  if (sampling.logprobs > limits_.max_logprobs) {
    return invalid(
        "sampling.logprobs",
        fmt::format("{} alternatives beside each token; the devices of this cell give at "
                    "most {}",
                    sampling.logprobs, limits_.max_logprobs));
  }
  if (sampling.logit_bias.size() > static_cast<std::size_t>(limits_.max_logit_bias)) {
    return invalid("sampling.logit_bias",
                   fmt::format("{} biased tokens; the devices of this cell take at most {}",
                               sampling.logit_bias.size(), limits_.max_logit_bias));
  }
  return {};
}

Result<void> Scheduler::check(const SequenceRequest& request) const {
  if (request.tokens.empty() || request.prompt_tokens == 0 ||
      request.prompt_tokens > request.tokens.size()) {
    return invalid("prompt", "a sequence needs at least one prompt token");
  }
  const bool draws = request.max_new_tokens > 0;
  if (!draws && !request.sampling.prompt_logprobs) {
    return invalid("max_new_tokens", "must be at least 1 without prompt_logprobs");
  }
  if (request.tokens.size() - request.prompt_tokens >= std::max(request.max_new_tokens, 1U)) {
    return invalid("max_new_tokens", "all tokens asked for are there already");
  }
  for (const std::int32_t token : request.tokens) {
    if (token < 0 || token >= limits_.vocab_size) {
      return invalid("prompt", fmt::format("token id {} is outside the vocabulary of {} tokens",
                                           token, limits_.vocab_size));
    }
  }
  if (Result<void> ok = check_sampling(request.sampling); !ok) return ok;
  const std::uint64_t longest = std::min<std::uint64_t>(
      std::uint64_t{request.prompt_tokens} + request.max_new_tokens, limits_.max_context_tokens);
  if (request.tokens.size() + (draws ? 1 : 0) > limits_.max_context_tokens) {
    return invalid(
        "prompt",
        fmt::format("{} tokens {} a context of {} tokens", request.tokens.size(),
                    draws ? "leave no room in" : "do not fit into", limits_.max_context_tokens));
  }
  // The token drawn last is never fed back, so it needs no KV.
  if (blocks_for(static_cast<std::uint32_t>(longest - (draws ? 1 : 0))) > limits_.blocks) {
    return invalid("max_new_tokens",
                   fmt::format("prompt and output of {} tokens need more KV than a lane has ({} "
                               "tokens); raise cache.kv_tokens or ask for less",
                               longest, std::uint64_t{limits_.blocks} * limits_.block_tokens));
  }
  return {};
}

Result<void> Scheduler::submit(SequenceRequest request) {
  if (Result<void> ok = check(request); !ok) return ok;
  if (sequences_.contains(request.id)) {
    return invalid("id", fmt::format("sequence {} is already here", request.id));
  }
  // Counted with the running ones: a burst waits for the next plan even when slots are free.
  const std::size_t room = std::size_t{limits_.max_sequences} * limits_.lanes + limits_.max_waiting;
  if (sequences_.size() >= room) {
    return Error{ErrorCode::kResourceExhausted, "",
                 fmt::format("the cell holds {} sequences already", sequences_.size())};
  }
  auto sequence = std::make_unique<Sequence>(limits_.block_tokens);
  sequence->tokens = request.tokens;
  sequence->arrival = arrivals_++;
  sequence->prompt_logprobs.id = request.id;
  sequence->request = std::move(request);
  waiting_.push_back(sequence.get());
  sequences_.emplace(sequence->request.id, std::move(sequence));
  return {};
}

bool Scheduler::cancel(RequestId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  erase(*it->second);
  return true;
}

void Scheduler::erase(Sequence& sequence) {
  if (sequence.state == SequenceState::kRunning) {
    stop_running(sequence);
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  }
  sequences_.erase(sequence.request.id);
}

void Scheduler::start_running(Sequence& sequence, std::uint32_t lane_index) {
  CHECK(sequence.unknown == 0, "sequence {} starts without its last token", sequence.request.id);
  Lane& lane = lanes_[lane_index];
  sequence.state = SequenceState::kRunning;
  if (sequence.lane != lane_index) sequence.last_saved = {};  // names of another pool
  sequence.lane = lane_index;
  sequence.slot = lane.free_slots.back();
  lane.free_slots.pop_back();
  sequence.cohort = static_cast<std::uint32_t>(
      std::min_element(lane.cohort_size.begin(), lane.cohort_size.end()) -
      lane.cohort_size.begin());
  ++lane.cohort_size[sequence.cohort];
  sequence.scheduled = sequence.cached = 0;
  sequence.announced = false;
  // Oldest first, so that a sequence that was preempted keeps its place.
  const auto older = [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; };
  lane.running.insert(std::upper_bound(lane.running.begin(), lane.running.end(), &sequence, older),
                      &sequence);
}

void Scheduler::stop_running(Sequence& sequence) {
  Lane& lane = lanes_[sequence.lane];
  publish(sequence);
  for (const PendingSave& save : sequence.saves) lane.snapshots.release(save.snapshot);
  sequence.saves.clear();
  sequence.blocks.release(lane.pool, computed_tokens(sequence));
  lane.free_slots.push_back(sequence.slot);
  --lane.cohort_size[sequence.cohort];
  lane.running.erase(std::find(lane.running.begin(), lane.running.end(), &sequence));
}

void Scheduler::preempt(Sequence& sequence) {
  stop_running(sequence);
  sequence.state = SequenceState::kWaiting;
  sequence.computed = std::max(sequence.computed, sequence.scheduled);
  sequence.scheduled = 0;
  ++preemptions_;
  const auto older = [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; };
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), &sequence, older), &sequence);
}

// The lane with the least to do, or one that has slightly more and knows more of the beginning.
std::optional<std::uint32_t> Scheduler::pick_lane(const Sequence& sequence) const {
  struct Candidate {
    std::uint32_t lane;
    std::uint32_t known_tokens;
    std::size_t running;
    std::uint32_t blocks_held;
  };
  std::vector<Candidate> candidates;
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  for (std::uint32_t i = 0; i < limits_.lanes; ++i) {
    const Lane& lane = lanes_[i];
    if (lane.free_slots.empty()) continue;
    const Skip skip = find_skip(lane, sequence, limits_.blocks);
    const auto held = std::ranges::count_if(
        skip.found, [&lane](const auto& entry) { return lane.pool.holders(entry.block) > 0; });
    // One spare block per running sequence keeps a new arrival from being preempted straight away.
    const std::size_t wanted =
        blocks_for(sequence.size()) - static_cast<std::size_t>(held) + lane.running.size();
    if (lane.pool.available() < wanted) continue;
    candidates.push_back(
        {i, skip.begin, lane.running.size(), lane.pool.capacity() - lane.pool.available()});
    fewest = std::min(fewest, lane.running.size());
  }
  if (candidates.empty()) return std::nullopt;
  const std::size_t most = fewest + std::max<std::size_t>(1, limits_.max_sequences / 8);
  const auto rank = [most](const Candidate& c) {
    const std::uint32_t known = c.running <= most ? c.known_tokens : 0;
    return std::tuple(-std::int64_t{known}, c.running, c.blocks_held);
  };
  return std::ranges::min_element(candidates, {}, rank)->lane;
}

void Scheduler::admit_waiting() {
  while (!waiting_.empty()) {
    Sequence& first = *waiting_.front();
    // A preempted sequence may still have its last token under way; recomputing before it arrives
    // would draw that token twice.
    if (first.plans_in_flight > 0) return;
    const std::optional<std::uint32_t> lane = pick_lane(first);
    if (!lane) return;
    waiting_.pop_front();
    start_running(first, *lane);
  }
}

bool Scheduler::make_room(Sequence& sequence, std::uint32_t blocks, const LaneDraft& draft) {
  Lane& lane = lanes_[sequence.lane];
  const auto drafted = [&draft](const Sequence* s) {
    return std::any_of(draft.issued.begin(), draft.issued.end(),
                       [s](const IssuedChunk& c) { return c.arrival == s->arrival; });
  };
  while (lane.pool.available() < blocks) {
    const auto victim =
        std::find_if(lane.running.rbegin(), lane.running.rend(), [&](const Sequence* s) {
          return s->arrival > sequence.arrival && !s->blocks.empty() && !drafted(s);
        });
    if (victim == lane.running.rend()) return false;
    preempt(**victim);
  }
  return true;
}

std::vector<std::int32_t> Scheduler::prompt_targets(const Sequence& sequence,
                                                    std::uint32_t tokens) const {
  std::vector<std::int32_t> targets;
  if (!sequence.request.sampling.prompt_logprobs || sequence.prompt_logprobs_sent) return targets;
  const auto reported = static_cast<std::uint32_t>(sequence.prompt_logprobs.targets.size());
  for (std::uint32_t i = 0; i < tokens; ++i) {
    const std::uint32_t target = sequence.scheduled + i + 1;
    const bool wanted = target < sequence.request.prompt_tokens && target > reported;
    targets.push_back(wanted ? sequence.tokens[target] : -1);
  }
  const bool any =
      std::any_of(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; });
  return any ? targets : std::vector<std::int32_t>{};
}

bool Scheduler::add_chunk(Sequence& sequence, std::uint32_t tokens, LaneDraft& draft) {
  const std::uint32_t have = sequence.blocks.size();
  const std::uint32_t need = blocks_for(std::max(sequence.scheduled + tokens, sequence.cached));
  if (need > have) {
    if (!make_room(sequence, need - have, draft)) return false;
    sequence.blocks.grow(lanes_[sequence.lane].pool, need - have);
  }
  Chunk chunk;
  chunk.new_blocks = sequence.blocks.take_news();
  chunk.cached = sequence.cached;
  chunk.load = std::exchange(sequence.load, kNoSnapshot);
  if (!sequence.announced) {
    SequenceStart start{
        sequence.slot, sequence.request.sampling, sequence.request.prompt_tokens, {}};
    if (start.sampling.uses_history()) start.history = sequence.tokens;
    draft.plan.starts.push_back(std::move(start));
    sequence.announced = true;
  }
  chunk.slot = sequence.slot;
  chunk.position = sequence.scheduled;
  if (sequence.scheduled == sequence.size()) {
    chunk.tokens.assign(1, kTokenOfSlot);
  } else {
    chunk.tokens.assign(sequence.tokens.begin() + sequence.scheduled,
                        sequence.tokens.begin() + sequence.scheduled + tokens);
  }
  chunk.sample =
      sequence.request.max_new_tokens > 0 && sequence.scheduled + tokens == sequence.length();
  chunk.prompt_targets = prompt_targets(sequence, tokens);
  if (chunk.sample) ++sequence.unknown;
  if (!std::exchange(sequence.planned, true)) {
    first_planned_.push_back(sequence.request.id);
    prefix_queried_tokens_ += findable(sequence).size();
  }
  if (sequence.scheduled < sequence.computed) {
    recomputed_tokens_ += std::min(tokens, sequence.computed - sequence.scheduled);
  }

  draft.issued.push_back({sequence.request.id, sequence.arrival, chunk.sample});
  draft.tokens += tokens;
  draft.plan.chunks.push_back(std::move(chunk));
  sequence.scheduled += tokens;
  ++sequence.plans_in_flight;
  publish(sequence);
  save_states(sequence, draft.plan.chunks.back());
  return true;
}

bool Scheduler::full(const Sequence& sequence, std::uint32_t length) const {
  return length - sequence.request.prompt_tokens >= sequence.request.max_new_tokens ||
         length >= limits_.max_context_tokens;
}

bool Scheduler::may_decode(const Sequence& sequence) const {
  if (!sequence.decoding()) return false;
  if (sequence.unknown == 0) return true;
  return limits_.async && !full(sequence, sequence.length());
}

bool Scheduler::any_decodes() const {
  return std::ranges::any_of(lanes_, [](const Lane& lane) {
    return std::ranges::any_of(lane.running, [](const Sequence* s) { return s->decoding(); });
  });
}

Scheduler::LaneDraft Scheduler::draft_lane(std::uint32_t lane_index, std::uint32_t cohort,
                                           std::uint32_t prefill_tokens) {
  LaneDraft draft;
  Lane& lane = lanes_[lane_index];
  const std::vector<Sequence*> running = lane.running;  // preemption changes the original
  const auto still_running = [](const Sequence* s) { return s->state == SequenceState::kRunning; };

  for (Sequence* s : running) {
    if (!still_running(s) || s->cohort != cohort || !may_decode(*s)) continue;
    if (draft.tokens == limits_.max_step_tokens) break;
    if (!add_chunk(*s, 1, draft)) preempt(*s);
  }
  for (Sequence* s : running) {
    if (!still_running(s) || s->decoding() || s->scheduled >= s->size()) continue;
    const std::uint32_t room =
        std::min(limits_.max_step_tokens - draft.tokens, prefill_tokens - draft.prefill_tokens);
    if (room == 0) break;
    add_prefill_chunk(*s, room, draft);  // or it waits for older ones to finish
  }
  return draft;
}

bool Scheduler::cohort_in_flight(std::uint32_t cohort) const {
  return std::any_of(in_flight_.begin(), in_flight_.end(),
                     [cohort](const auto& entry) { return entry.second.cohort == cohort; });
}

std::optional<StepPlan> Scheduler::next_plan() {
  if (in_flight_.size() >= (limits_.async ? 2 : limits_.stages)) return std::nullopt;
  admit_waiting();
  const std::uint32_t prefill_tokens = any_decodes() ? prefill_limit_ : limits_.max_step_tokens;
  for (std::uint32_t i = 0; i < limits_.stages; ++i) {
    const std::uint32_t cohort = (next_cohort_ + i) % limits_.stages;
    if (!limits_.async && cohort_in_flight(cohort)) continue;
    std::vector<LaneDraft> drafts;
    std::uint32_t tokens = 0;
    for (std::uint32_t lane = 0; lane < limits_.lanes; ++lane) {
      drafts.push_back(draft_lane(lane, cohort, prefill_tokens));
      tokens += drafts.back().tokens;
    }
    if (tokens > 0) return issue(cohort, std::move(drafts));
  }
  return std::nullopt;
}

StepPlan Scheduler::issue(std::uint32_t cohort, std::vector<LaneDraft> drafts) {
  StepPlan plan;
  plan.step = next_step_++;
  plan.cohort = cohort;
  next_cohort_ = (cohort + 1) % limits_.stages;

  IssuedPlan issued;
  issued.cohort = cohort;
  issued.answered.assign(limits_.lanes, false);
  issued.lanes_left = limits_.lanes;
  std::uint32_t most = 0;
  bool prefill = false;
  for (LaneDraft& draft : drafts) {
    most = std::max(most, draft.tokens);
    prefill = prefill || draft.prefill_tokens > 0;
    issued.by_slot.emplace_back();
    for (std::size_t i = 0; i < draft.issued.size(); ++i) {
      issued.by_slot.back().emplace(draft.plan.chunks[i].slot, draft.issued[i]);
    }
    plan.lanes.push_back(std::move(draft.plan));
    issued.lanes.push_back(std::move(draft.issued));
  }
  // Powers of two: few distinct sizes, so that a device can keep one graph per size.
  plan.bucket = std::min(std::bit_ceil(most), limits_.max_step_tokens);
  switch (limits_.exchange) {
    case ExchangeChoice::kAuto:
      plan.exchange = prefill ? ExchangePath::kAllToAllExact : ExchangePath::kAllToAllFixed;
      break;
    case ExchangeChoice::kFixed:
      plan.exchange = ExchangePath::kAllToAllFixed;
      break;
    case ExchangeChoice::kExact:
      plan.exchange = ExchangePath::kAllToAllExact;
      break;
    case ExchangeChoice::kAllGather:
      plan.exchange = ExchangePath::kAllGather;
      break;
  }
  in_flight_.emplace(plan.step, std::move(issued));
  return plan;
}

StepPlan Scheduler::probe_plan() {
  CHECK(in_flight_.empty(), "{} plans in flight", in_flight_.size());
  return issue(0, std::vector<LaneDraft>(limits_.lanes));
}

Sequence* Scheduler::find(const IssuedChunk& chunk) {
  const auto it = sequences_.find(chunk.id);
  if (it == sequences_.end() || it->second->arrival != chunk.arrival) return nullptr;
  return it->second.get();
}

Result<void> Scheduler::check_result(const StepResult& result) const {
  const auto it = in_flight_.find(result.step);
  if (it == in_flight_.end()) {
    return invalid("step", fmt::format("no plan {} is in flight", result.step));
  }
  const IssuedPlan& plan = it->second;
  if (result.lane >= limits_.lanes || plan.answered[result.lane]) {
    return invalid(
        "lane", fmt::format("lane {} has no answer to give for step {}", result.lane, result.step));
  }
  const auto& chunks = plan.lanes[result.lane];
  const auto samples = static_cast<std::size_t>(
      std::count_if(chunks.begin(), chunks.end(), [](const IssuedChunk& c) { return c.sample; }));
  if (samples != result.sampled.size()) {
    return invalid("sampled",
                   fmt::format("step {} lane {}: {} tokens for {} sampling chunks", result.step,
                               result.lane, result.sampled.size(), samples));
  }
  for (const SampledToken& sampled : result.sampled) {
    if (sampled.chosen.token < kNoToken || sampled.chosen.token >= limits_.vocab_size) {
      return invalid("sampled", fmt::format("token id {} is outside the vocabulary of {} tokens",
                                            sampled.chosen.token, limits_.vocab_size));
    }
  }
  return {};
}

Result<Scheduler::Events> Scheduler::on_result(const StepResult& result) {
  if (Result<void> ok = check_result(result); !ok) return ok.error();
  const auto it = in_flight_.find(result.step);
  IssuedPlan& plan = it->second;
  Events events;
  for (const IssuedChunk& chunk : plan.lanes[result.lane]) {
    if (Sequence* sequence = find(chunk)) --sequence->plans_in_flight;
  }
  take_prompt_logprobs(plan, result, events);
  std::size_t next = 0;
  for (const IssuedChunk& chunk : plan.lanes[result.lane]) {
    if (!chunk.sample) continue;
    const SampledToken& sampled = result.sampled[next++];
    if (Sequence* sequence = find(chunk)) take_sampled(*sequence, sampled, events);
  }
  plan.answered[result.lane] = true;
  if (--plan.lanes_left == 0) {
    in_flight_.erase(it);
    ++steps_finished_;
    events.plan_finished = true;
  }
  return events;
}

void Scheduler::take_prompt_logprobs(const IssuedPlan& plan, const StepResult& result,
                                     Events& events) {
  const auto& by_slot = plan.by_slot[result.lane];
  for (const PromptLogprobs& entry : result.prompt_logprobs) {
    const auto it = by_slot.find(entry.slot);
    Sequence* sequence = it == by_slot.end() ? nullptr : find(it->second);
    if (sequence == nullptr) continue;  // cancelled meanwhile
    PromptLogprobsEvent& collected = sequence->prompt_logprobs;
    if (entry.position != collected.targets.size() + 1) continue;
    collected.targets.push_back(entry.target);
    collected.top.push_back(entry.top);
  }
  for (const IssuedChunk& chunk : plan.lanes[result.lane]) {
    Sequence* sequence = find(chunk);
    if (sequence == nullptr || !sequence->request.sampling.prompt_logprobs) continue;
    const bool complete =
        sequence->prompt_logprobs.targets.size() + 1 == sequence->request.prompt_tokens;
    if (!complete || sequence->prompt_logprobs_sent) continue;
    sequence->prompt_logprobs_sent = true;
    events.prompt_logprobs.push_back(std::move(sequence->prompt_logprobs));
    if (sequence->request.max_new_tokens > 0) continue;
    events.tokens.push_back(
        {.id = sequence->request.id, .has_token = false, .finish = FinishReason::kLength});
    erase(*sequence);
  }
}

void Scheduler::take_sampled(Sequence& sequence, const SampledToken& sampled, Events& events) {
  const SequenceRequest& request = sequence.request;
  --sequence.unknown;
  if (sampled.chosen.token == kNoToken) {
    TokenEvent event;
    event.id = request.id;
    event.index = sequence.generated();
    event.has_token = false;
    event.finish = FinishReason::kError;
    event.error = "the model's logits were not finite, so no token could be drawn";
    events.tokens.push_back(std::move(event));
    ++corrupted_sequences_;
    forget(sequence);
    erase(sequence);
    return;
  }
  sequence.tokens.push_back(sampled.chosen.token);
  ++generated_tokens_;

  TokenEvent event;
  event.id = request.id;
  event.index = sequence.generated() - 1;
  event.token = sampled.chosen;
  event.top = sampled.top;
  if (!std::exchange(sequence.skipped_told, true)) event.cached_tokens = sequence.skipped;
  const bool is_stop = std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(),
                                 sampled.chosen.token) != request.stop_token_ids.end();
  if (is_stop && sequence.generated() > request.min_new_tokens) {
    event.finish = FinishReason::kStop;
    event.stop_token = true;
  } else if (full(sequence, sequence.size())) {
    event.finish = FinishReason::kLength;
  }
  const bool finished = event.finish != FinishReason::kNone;
  events.tokens.push_back(std::move(event));
  if (finished) erase(sequence);
}

CellStatus Scheduler::status() const {
  CellStatus status;
  status.steps = steps_finished_;
  status.waiting = static_cast<std::uint32_t>(waiting_.size());
  for (const Lane& lane : lanes_) {
    status.running += static_cast<std::uint32_t>(lane.running.size());
    status.kv_tokens_used +=
        std::uint64_t{lane.pool.capacity() - lane.pool.available()} * limits_.block_tokens;
    status.kv_tokens_cached += std::uint64_t{lane.pool.idle()} * limits_.block_tokens;
  }
  status.preemptions = preemptions_;
  status.prompt_tokens = prompt_tokens_;
  status.generated_tokens = generated_tokens_;
  status.recomputed_tokens = recomputed_tokens_;
  status.prefix_queried_tokens = prefix_queried_tokens_;
  status.prefix_hit_tokens = prefix_hit_tokens_;
  status.prefix_rebuilt_tokens = prefix_rebuilt_tokens_;
  status.corrupted_sequences = corrupted_sequences_;
  return status;
}

}  // namespace millrace
