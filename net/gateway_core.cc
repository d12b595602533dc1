#include "net/gateway_core.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "config/check.h"

namespace millrace::net {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::milliseconds kDrainPoll{20};

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

GatewayCore::GatewayCore(Strand strand, GatewayConfig config, Exporter* exporter)
    : strand_(std::move(strand)),
      config_(std::move(config)),
      metrics_(exporter),
      links_(strand_, config_.cells, *this),
      tick_timer_(strand_),
      drained_timer_(strand_) {}

Result<void> GatewayCore::start() {
  if (auto ok = links_.listen(); !ok) return ok;
  refresh_status(Clock::now());
  asio::co_spawn(
      strand_,
      [self = shared_from_this()]() -> asio::awaitable<void> { co_await self->tick_loop(); },
      asio::detached);
  return {};
}

void GatewayCore::on_tokens(const Assignment& from, std::span<TokenEvent> events) {
  const Clock::time_point now = Clock::now();
  std::vector<RequestId> given_up, refused;
  std::string why;
  for (TokenEvent& event : events) {
    const RequestId id = event.id;
    const TokenVerdict verdict = journal_.on_token(from, event);
    // What is cancelled here is forgotten at once (recall), so kCancelled is no wish of ours.
    const bool gives_up = event.finish == FinishReason::kCancelled;
    if (verdict == TokenVerdict::kDeliver && (gives_up || event.finish == FinishReason::kRefused)) {
      (gives_up ? given_up : refused).push_back(id);
      if (!event.error.empty()) why = std::move(event.error);
    } else if (verdict == TokenVerdict::kDeliver) {
      deliver(id, sequences_.at(id), std::move(event), now);
    } else if (verdict == TokenVerdict::kBroken) {
      spdlog::error("gateway: {} sent token {} of sequence {} out of order", from.cell_id,
                    event.index, id);
      touched_.push_back(sequences_.at(id).stream);
      recall(id);
      fail_sequence(id, FailureCause::kProtocol,
                    "the tokens of this answer arrived out of order; it cannot be continued");
    }
  }
  if (!given_up.empty() || !refused.empty()) {
    cells_.at(from.cell_id).paused = true;
    if (why.empty()) why = "it gave no reason";
    replay(std::move(given_up), Unfinished::kLost,
           fmt::format("cell {} gave them up: {}", from.cell_id, why));
    replay(std::move(refused), Unfinished::kRefused,
           fmt::format("cell {} refused them: {}", from.cell_id, why));
  }
  for (const auto& stream : touched_) stream->wake();
  touched_.clear();
  pump();
}

void GatewayCore::on_prompt_logprobs(const Assignment& from, PromptLogprobsEvent event) {
  const RequestId id = event.id;
  const TokenVerdict verdict = journal_.on_prompt_logprobs(from, event);
  if (verdict != TokenVerdict::kDeliver && verdict != TokenVerdict::kBroken) return;
  const auto stream = sequences_.at(id).stream;
  if (verdict == TokenVerdict::kDeliver) {
    push(*stream, {sequences_.at(id).choice, std::move(event)});
  } else {
    recall(id);
    fail_sequence(id, FailureCause::kProtocol,
                  "the prompt's log-probabilities do not fit the prompt; the answer has ended");
  }
  stream->wake();
}

void GatewayCore::deliver(RequestId id, Sequence& sequence, TokenEvent&& event,
                          Clock::time_point now) {
  touched_.push_back(sequence.stream);
  note_cached(sequence, event);
  if (event.has_token) {
    observe_token(sequence, event, now);
  } else if (sequence.generated == 0 &&
             (event.finish == FinishReason::kStop || event.finish == FinishReason::kLength)) {
    observe_start(sequence, event, now);  // only the prompt's log-probabilities were asked for
  }
  if (event.finish == FinishReason::kError) {
    spdlog::warn("gateway: sequence {} ended with an error of its cell: {}", id, event.error);
    count_failure(FailureCause::kCellError, 1);
  }
  const FinishReason reason = event.finish;
  if (!push(*sequence.stream, {sequence.choice, std::move(event)})) return;
  if (reason != FinishReason::kNone) finish(id, reason);
}

// What a cell that goes on with a sequence of another has found of it is not the client's affair.
void GatewayCore::note_cached(Sequence& sequence, TokenEvent& event) {
  event.cached_tokens =
      sequence.generated == 0 ? std::min(event.cached_tokens, sequence.prompt_tokens) : 0;
  sequence.cached_tokens += event.cached_tokens;
}

// The prompt has been computed. Cells tell an age, since clocks of two machines differ; the way of
// the event counts as waiting.
void GatewayCore::observe_start(Sequence& sequence, const TokenEvent& event,
                                Clock::time_point now) {
  const auto age = std::chrono::microseconds(event.since_scheduled_us);
  sequence.scheduled = std::max<Clock::time_point>(now - age, sequence.admitted);
  sequence.first_token = sequence.last_token = now;
  metrics_.queue_time.observe(seconds(sequence.scheduled - sequence.admitted));
  metrics_.prompt_tokens.add(sequence.prompt_tokens);
  metrics_.cached_tokens.add(sequence.cached_tokens);
}

void GatewayCore::observe_token(Sequence& sequence, const TokenEvent& event,
                                Clock::time_point now) {
  sequence.fruitless = 0;
  absolve(event.id, sequence);
  if (sequence.generated++ == 0) {
    observe_start(sequence, event, now);
    metrics_.first_token.observe(seconds(now - sequence.admitted));
  } else {
    metrics_.inter_token.observe(seconds(now - sequence.last_token));
  }
  sequence.last_token = now;
  metrics_.generation_tokens.add();
}

bool GatewayCore::push(StreamState& stream, ChoiceEvent event) {
  if (stream.buffer.size() < config_.stream_buffer_tokens) {
    stream.buffer.push_back(std::move(event));
    return true;
  }
  ++stats_.slow_consumers;
  fail_stream(
      stream, FailureCause::kSlowConsumer,
      {ErrorCode::kResourceExhausted, "gateway.stream_buffer_tokens",
       fmt::format("the answer was read too slowly: more than {} tokens waited; read faster",
                   config_.stream_buffer_tokens)});
  return false;
}

// The sequence has ended and its last event is in the stream: forget it.
void GatewayCore::finish(RequestId id, FinishReason reason) {
  const auto it = sequences_.find(id);
  CHECK(it != sequences_.end(), "id={}", id);
  if (it->second.in_cell) {
    leave_cell(id);
    ++finished_since_tick_;
  }
  const Sequence sequence = std::move(it->second);
  sequences_.erase(it);
  journal_.close(id);
  sequence.stream->ids[sequence.choice] = 0;
  --sequence.stream->open_choices;
  metrics_.finished(reason).add();
  switch (reason) {
    case FinishReason::kCancelled:
      ++stats_.cancelled;
      break;
    case FinishReason::kError:
      ++stats_.failed;
      break;
    default: {
      ++stats_.finished_ok;
      metrics_.latency.observe(seconds(Clock::now() - sequence.admitted));
      metrics_.request_prompt.observe(sequence.prompt_tokens);
      metrics_.request_generation.observe(sequence.generated);
      metrics_.prefill_computed.observe(sequence.prompt_tokens - sequence.cached_tokens);
      metrics_.prefill_time.observe(seconds(sequence.first_token - sequence.scheduled));
      metrics_.inference_time.observe(seconds(sequence.last_token - sequence.scheduled));
      const double decode = seconds(sequence.last_token - sequence.first_token);
      if (sequence.generated > 0) metrics_.decode_time.observe(decode);
      if (sequence.generated > 1)
        metrics_.per_output_token.observe(decode / (sequence.generated - 1));
    }
  }
  if (sequences_.empty()) drained_timer_.cancel();
}

void GatewayCore::recall(RequestId id) {
  const Sequence& sequence = sequences_.at(id);
  if (sequence.in_cell) {
    links_.cancel(journal_.find(id)->at, id);
  } else {
    unqueue(id);
  }
}

void GatewayCore::end_without_token(RequestId id, FinishReason reason, std::string sentence) {
  const Sequence& sequence = sequences_.at(id);
  TokenEvent event{.id = id,
                   .index = journal_.find(id)->next_index(),
                   .has_token = false,
                   .finish = reason,
                   .error = std::move(sentence)};
  // Past the buffer's limit: an end must always reach its stream, and there is one per choice.
  sequence.stream->buffer.push_back({sequence.choice, std::move(event)});
  finish(id, reason);
}

void GatewayCore::fail_sequence(RequestId id, FailureCause cause, std::string sentence) {
  if (cause == FailureCause::kQueueTimeout) recall(id);
  count_failure(cause, 1);
  end_without_token(id, FinishReason::kError, std::move(sentence));
}

void GatewayCore::fail_stream(StreamState& stream, FailureCause cause, Error error) {
  stream.buffer.clear();
  stream.error = std::move(error);
  count_failure(cause, stream.open_choices);
  const std::vector<RequestId> ids = stream.ids;
  for (const RequestId id : ids) {
    if (id == 0) continue;
    recall(id);
    finish(id, FinishReason::kError);
  }
}

void GatewayCore::cancel_choice(StreamState& stream, std::uint32_t choice) {
  if (choice >= stream.ids.size() || stream.ids[choice] == 0) return;
  const RequestId id = stream.ids[choice];
  recall(id);
  end_without_token(id, FinishReason::kCancelled, "");
  stream.wake();
  pump();
}

void GatewayCore::abandon(StreamState& stream) {
  const std::vector<RequestId> ids = stream.ids;
  for (const RequestId id : ids) {
    if (id == 0) continue;
    recall(id);
    finish(id, FinishReason::kCancelled);
  }
  stream.buffer.clear();
  pump();
}

void GatewayCore::count_failure(FailureCause cause, std::uint32_t sequences) {
  switch (cause) {
    case FailureCause::kCellLost:
      return metrics_.failed_cell_lost.add(sequences);
    case FailureCause::kCellError:
      return metrics_.failed_cell_error.add(sequences);
    case FailureCause::kProtocol:
      return metrics_.failed_protocol.add(sequences);
    case FailureCause::kQueueTimeout:
      return metrics_.failed_queue_timeout.add(sequences);
    case FailureCause::kSlowConsumer:
      return metrics_.failed_slow_consumer.add(sequences);
    case FailureCause::kShutdown:
      return metrics_.failed_shutdown.add(sequences);
  }
}

void GatewayCore::begin_drain() { draining_ = true; }

asio::awaitable<bool> GatewayCore::finish_drain(std::chrono::milliseconds limit) {
  const auto self = shared_from_this();
  refresh();
  const auto deadline = Clock::now() + limit;
  // A request counted in the queue but not in sequences_ is on its way to the strand.
  while ((!sequences_.empty() || queued_sequences_ > 0) && Clock::now() < deadline && !stopped_) {
    boost::system::error_code ec;
    drained_timer_.expires_at(std::min(deadline, Clock::now() + kDrainPoll));
    co_await drained_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
  const bool all_ended = sequences_.empty();
  spdlog::info("gateway: drained, {} sequences left", sequences_.size());
  links_.drain_cells();
  co_return all_ended;
}

void GatewayCore::stop() {
  if (stopped_) return;
  stopped_ = true;
  draining_ = true;
  tick_timer_.cancel();
  drained_timer_.cancel();
  while (!sequences_.empty()) {
    const auto stream = sequences_.begin()->second.stream;
    fail_stream(
        *stream, FailureCause::kShutdown,
        {ErrorCode::kUnavailable, "", "the server is stopping; send the request elsewhere"});
    stream->wake();
  }
  links_.close("the gateway stops");
  refresh();
}

}  // namespace millrace::net
