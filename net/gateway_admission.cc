// GatewayCore: from a client's request to a cell.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

#include "config/check.h"
#include "net/gateway_core.h"

namespace millrace::net {

namespace asio = boost::asio;

Result<std::unique_ptr<GenerationStream>> GatewayCore::submit(GenerateRequest request) {
  const std::uint32_t context = max_context_;
  if (auto ok = check(request, context); !ok) return ok.error();
  if (draining_) return refuse_draining();
  if (!ready_) {
    ++rejected_no_cell_;
    metrics_.rejected_no_cell.add();
    return Error{ErrorCode::kUnavailable, "", "not ready: " + status().reason};
  }
  if (auto ok = reserve(request.n, std::uint64_t{request.n} * request.prompt.size()); !ok) {
    return ok.error();
  }
  if (draining_) {  // the order came in between: finish_drain() may have looked already
    release(request.n, std::uint64_t{request.n} * request.prompt.size());
    return refuse_draining();
  }
  metrics_.params_n.observe(request.n);
  metrics_.params_max_tokens.observe(request.max_new_tokens);
  // Decided now: the answer may not depend on the cell that happens to end it.
  if (context != 0) {
    const auto prompt = static_cast<std::uint32_t>(request.prompt.size());
    request.max_new_tokens = std::min(request.max_new_tokens, context - prompt);
  }
  auto state = std::make_shared<StreamState>();
  StreamWaits::watch(strand_, state);
  state->open_choices = request.n;
  state->ids.resize(request.n);
  const RequestId first_id = next_id_.fetch_add(request.n);
  for (std::uint32_t c = 0; c < request.n; ++c) state->ids[c] = first_id + c;
  StreamControl control;
  control.cancel = [weak = weak_from_this()](std::shared_ptr<StreamState> s, std::uint32_t choice) {
    const auto self = weak.lock();
    if (!self) return;
    asio::post(self->strand_, [self, s, choice] { self->cancel_choice(*s, choice); });
  };
  control.abandon = [weak = weak_from_this()](std::shared_ptr<StreamState> s) {
    const auto self = weak.lock();
    if (self) asio::post(self->strand_, [self, s] { self->abandon(*s); });
  };
  asio::post(strand_, [self = shared_from_this(), state, first_id, now = Clock::now(),
                       trail = PrefixAffinity::trail(request.prompt),
                       r = std::move(request)] { self->admit(r, trail, first_id, state, now); });
  return std::unique_ptr<GenerationStream>(
      std::make_unique<GatewayStream>(strand_, std::move(state), std::move(control)));
}

Error GatewayCore::refuse_draining() {
  ++rejected_draining_;
  metrics_.rejected_draining.add();
  return {ErrorCode::kUnavailable, "", "the server is draining; send the request elsewhere"};
}

Result<void> GatewayCore::check(const GenerateRequest& request, std::uint32_t context) const {
  if (request.prompt.empty()) return invalid("prompt", "must have at least one token");
  if (request.n == 0) return invalid("n", "must be at least 1");
  const bool draws = request.max_new_tokens > 0;
  if (!draws && !request.sampling.prompt_logprobs) {
    return invalid("max_tokens", "must be at least 1 where no prompt log-probabilities are asked");
  }
  const std::uint32_t room = draws ? context - 1 : context;
  if (context != 0 && request.prompt.size() > room) {
    return invalid("prompt",
                   fmt::format("has {} tokens; {}{} fit into the context", request.prompt.size(),
                               draws ? "with at least one to generate, " : "", room));
  }
  return {};
}

// Takes room in the queue on atomic counters: a refusal costs neither a lock nor a copy.
Result<void> GatewayCore::reserve(std::uint64_t sequences, std::uint64_t tokens) {
  const std::uint64_t s = queued_sequences_.fetch_add(sequences) + sequences;
  const std::uint64_t t = queued_tokens_.fetch_add(tokens) + tokens;
  if (s <= config_.max_queued_sequences && t <= config_.max_queued_tokens) return {};
  release(sequences, tokens);
  if (s > config_.max_queued_sequences) {
    ++rejected_queue_full_;
    metrics_.rejected_queue_full.add();
    return Error{ErrorCode::kResourceExhausted, "gateway.max_queued_requests",
                 fmt::format("the queue of {} sequences has no room for {} more; try again later",
                             config_.max_queued_sequences, sequences)};
  }
  ++rejected_token_budget_;
  metrics_.rejected_token_budget.add();
  return Error{ErrorCode::kResourceExhausted, "gateway.max_queued_tokens",
               fmt::format("the queue of {} prompt tokens has no room for {} more; try again later",
                           config_.max_queued_tokens, tokens)};
}

void GatewayCore::release(std::uint64_t sequences, std::uint64_t tokens) {
  queued_sequences_ -= sequences;
  queued_tokens_ -= tokens;
}

void GatewayCore::admit(const GenerateRequest& request, const PrefixAffinity::Trail& trail,
                        RequestId first_id, const std::shared_ptr<StreamState>& stream,
                        Clock::time_point now) {
  const auto prompt_tokens = static_cast<std::uint32_t>(request.prompt.size());
  for (std::uint32_t choice = 0; choice < request.n; ++choice) {
    const RequestId id = first_id + choice;
    SequenceRequest r{.id = id,
                      .tokens = request.prompt,
                      .prompt_tokens = prompt_tokens,
                      .max_new_tokens = request.max_new_tokens,
                      .min_new_tokens = request.min_new_tokens,
                      .stop_token_ids = request.stop_token_ids,
                      .sampling = request.sampling};
    r.sampling.choice = choice;
    journal_.open(std::move(r));
    sequences_[id] = {.stream = stream,
                      .choice = choice,
                      .prompt_tokens = prompt_tokens,
                      .trail = trail,
                      .admitted = now,
                      .queued = now};
    queue_.push_back(id);
    ++stats_.admitted;
  }
  if (stopped_) {
    fail_stream(*stream, FailureCause::kShutdown,
                {ErrorCode::kUnavailable, "", "the server has stopped"});
    return;
  }
  spdlog::debug("gateway: {} is sequences {}..{}", request.request_id, first_id,
                first_id + request.n - 1);
  pump();
}

// Hands waiting sequences to cells, oldest first, as long as one has room. What no cell with room
// may take is passed by; where it waits for its turn alone, those that pass it by find no room but
// slots, so that it need not stand behind them in the cell.
void GatewayCore::pump() {
  std::uint32_t depth = config_.cell_queue_depth;
  const auto has_room = [&](const auto& entry) { return room(entry.second, depth) > 0; };
  for (auto it = queue_.begin(); it != queue_.end() && std::ranges::any_of(cells_, has_room);) {
    Cell* cell = cell_for(*it, depth);
    if (cell == nullptr) {
      if (suspicious(sequences_.at(*it))) depth = 0;
      ++it;
    } else if (dispatch(*it, *cell)) {
      it = queue_.erase(it);
    }
  }
}

// Sequences that the cell takes now.
std::int64_t GatewayCore::room(const Cell& cell, std::uint32_t queue_depth) const {
  if (!cell.connected || cell.paused || cell.view.state != CellState::kHealthy) return 0;
  return std::int64_t{cell.view.info.max_sequences} + queue_depth - cell.assigned;
}

// The freest cell, or one that has slightly less room and has seen the beginning of the prompt.
GatewayCore::Cell* GatewayCore::cell_for(RequestId id, std::uint32_t queue_depth) {
  const SequenceRequest& request = journal_.find(id)->request;
  const Sequence& sequence = sequences_.at(id);
  const std::uint64_t length = std::uint64_t{request.prompt_tokens} + request.max_new_tokens;
  const bool alone = suspicious(sequence);
  const auto may_take = [&](const Cell& cell) {
    return length <= cell.view.info.max_context && (!alone || cell.suspects == 0) &&
           room(cell, queue_depth) > 0;
  };
  Cell* best = nullptr;
  for (auto& [name, cell] : cells_) {
    if (!may_take(cell)) continue;
    if (best == nullptr || room(cell, queue_depth) > room(*best, queue_depth)) best = &cell;
  }
  if (best == nullptr || cells_.size() == 1) return best;
  const std::string* familiar = affinity_.find(sequence.trail);
  const auto seen = familiar == nullptr ? cells_.end() : cells_.find(*familiar);
  if (seen == cells_.end() || !may_take(seen->second)) return best;
  Cell& cell = seen->second;
  // A cell without a prefix cache, or one that has just been started, has looked for nothing.
  if (cell.view.status.prefix_queried_tokens == 0) return best;
  // To wait for a slot costs more than to compute again in one that is free.
  if (room(cell, 0) <= 0 && room(*best, 0) > 0) return best;
  const std::int64_t slightly = std::max<std::int64_t>(1, cell.view.info.max_sequences / 4);
  return room(*best, queue_depth) - room(cell, queue_depth) <= slightly ? &cell : best;
}

bool GatewayCore::dispatch(RequestId id, Cell& cell) {
  const Journal::Entry* entry = journal_.find(id);
  CHECK(entry != nullptr, "id={}", id);
  const bool sent = entry->submissions == 0
                        ? links_.submit(cell.at, entry->request)
                        : links_.submit(cell.at, journal_.resubmit_request(id).value());
  if (!sent) {
    cell.connected = false;  // its end is on the way; nothing more goes there
    return false;
  }
  journal_.assign(id, cell.at);
  Sequence& sequence = sequences_.at(id);
  sequence.in_cell = true;
  ++cell.assigned;
  if (sequence.choice == 0) affinity_.note(sequence.trail, cell.at.cell_id);
  suspect(sequence, cell);
  release(1, sequence.prompt_tokens);
  return true;
}

void GatewayCore::expire_queue(Clock::time_point now) {
  std::vector<std::pair<RequestId, std::chrono::milliseconds>> late;
  for (const RequestId id : queue_) {
    const Sequence& sequence = sequences_.at(id);
    const auto limit = sequence.fruitless > 0 ? config_.replay_timeout : config_.queue_timeout;
    if (now - sequence.queued >= limit) late.emplace_back(id, limit);
  }
  for (const auto& [id, limit] : late) {
    if (sequences_.contains(id)) expire(id, limit);  // it may have gone with another of its stream
  }
}

void GatewayCore::expire(RequestId id, std::chrono::milliseconds limit) {
  const auto stream = sequences_.at(id).stream;
  if (sequences_.at(id).fruitless > 0) {
    unqueue(id);
    fail_sequence(id, FailureCause::kCellLost,
                  fmt::format("this answer was lost with its cell, and none went on with it within "
                              "{} ms; send the request again",
                              limit.count()));
    return stream->wake();
  }
  ++stats_.queue_timeouts;
  const std::string sentence =
      fmt::format("waited {} ms in the queue, which is the limit; try again later", limit.count());
  const bool begun = std::ranges::any_of(stream->ids, [this](RequestId other) {
    if (other == 0) return true;  // has ended
    const Sequence& s = sequences_.at(other);
    return s.in_cell || s.fruitless > 0;
  });
  if (begun) {
    fail_sequence(id, FailureCause::kQueueTimeout, sentence);
  } else {
    fail_stream(*stream, FailureCause::kQueueTimeout,
                {ErrorCode::kResourceExhausted, "gateway.queue_timeout", sentence});
  }
  stream->wake();
}

void GatewayCore::unqueue(RequestId id) {
  release(1, sequences_.at(id).prompt_tokens);
  const auto it = std::ranges::find(queue_, id);
  CHECK(it != queue_.end(), "id={}", id);
  queue_.erase(it);
}

}  // namespace millrace::net
