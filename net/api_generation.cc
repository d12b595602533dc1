#include "net/api_generation.h"

#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "net/openai_error.h"
#include "net/sse.h"
#include "net/text/utf8.h"

namespace millrace::net {
namespace asio = boost::asio;

namespace {

double seconds_between(std::chrono::steady_clock::time_point a,
                       std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

template <class T>
void append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  from.clear();
}

ApiError engine_failure(const std::string& message) {
  ApiError error;
  error.status = 500;
  error.message = message;
  error.type = "server_error";
  error.code = "internal_error";
  return error;
}

}  // namespace

Generation::Generation(ApiContext& context, const PreparedRequest& request, const HttpRequest& http,
                       Responder& responder)
    : context_(context),
      request_(request),
      http_(http),
      responder_(responder),
      format_(request, *context.text.tokenizer, request.params.model,
              context.config.system_fingerprint),
      route_(request.chat ? "/v1/chat/completions" : "/v1/completions"),
      prompt_logprobs_(request.prompts.size()) {
  for (const PreparedPrompt& prompt : request.prompts) {
    const std::size_t echoed = text::count_code_points(prompt.echo_text);
    for (std::uint32_t i = 0; i < request.params.n; ++i) {
      choices_.push_back(
          {.text = ChoiceText(*context.text.tokenizer, request.params, request.stops, echoed)});
    }
    open_.push_back(request.params.n);
    start_.prompt_tokens += prompt.ids.size();
    start_.max_tokens = std::max(start_.max_tokens, prompt.max_new_tokens);
  }
  start_.route = route_;
  start_.request_id = http.request_id;
  start_.prompts = static_cast<std::uint32_t>(request.prompts.size());
  start_.n = request.params.n;
  start_.stream = request.params.output.stream;
}

// All prompts or none: a refusal of one drops the streams that were already admitted.
ApiResult<bool> Generation::submit() {
  if (request_.prompt_only && !needs_prompt_logprobs()) return true;
  for (std::size_t i = 0; i < request_.prompts.size(); ++i) {
    auto stream =
        context_.engine.submit(request_.engine_request(i, http_.request_id, context_.text));
    if (stream.has_error()) {
      streams_.clear();
      return api_error_of(stream.error(), context_.engine.retry_after(),
                          context_.config.overload_as_429);
    }
    streams_.push_back(std::move(*stream));
  }
  return true;
}

asio::awaitable<void> Generation::run() {
  auto admitted = submit();
  if (admitted.has_error()) {
    HttpResponse refusal = context_.reject(route_, admitted.error());
    co_await responder_.send(std::move(refusal));
    co_return;
  }
  accepted_ = Clock::now();
  context_.observer->accepted(start_);
  responder_.on_gone([this] {
    aborted_ = true;
    cancel_all();
  });
  if (request_.params.output.stream && !aborted_) {
    HttpResponse head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers.emplace_back("Cache-Control", "no-cache");
    head.headers.emplace_back("X-Accel-Buffering", "no");
    co_await responder_.begin_stream(std::move(head), sse_comment("keep-alive"),
                                     context_.config.keep_alive);
  }
  if (!aborted_) {
    std::string out;
    if (request_.chat && request_.params.output.stream) {
      for (std::uint32_t i = 0; i < choices_.size(); ++i) {
        out += sse_data(format_.role_chunk(i, chunk_usage()));
      }
    }
    if (streams_.empty()) echo_only(out);
    if (!out.empty()) co_await responder_.write(std::move(out));
  }
  co_await read_all();
  final_usage_ = usage();
  streams_.clear();  // frees the slots before the answer is written
  co_await answer();
}

// Readers share this object, so all must have ended before run() goes on.
asio::awaitable<void> Generation::read_all() {
  if (streams_.size() == 1) {
    co_await read_prompt(0);
    co_return;
  }
  const auto executor = co_await asio::this_coro::executor;
  readers_done_.emplace(executor, Clock::time_point::max());
  readers_ = streams_.size();
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    asio::co_spawn(
        executor,
        [this, i]() -> asio::awaitable<void> {
          co_await read_prompt(i);
          if (--readers_ == 0) readers_done_->cancel();
        },
        asio::detached);
  }
  while (readers_ > 0) {
    boost::system::error_code ignored;
    co_await readers_done_->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

asio::awaitable<void> Generation::read_prompt(std::size_t prompt) {
  try {
    while (open_[prompt] > 0 && !aborted_ && !error_) {
      auto event = co_await streams_[prompt]->next();
      if (aborted_ || error_) break;
      if (event.has_error()) {
        fail(api_error_of(event.error(), context_.engine.retry_after(),
                          context_.config.overload_as_429));
      } else if (!event->has_value()) {
        fail(engine_failure("the generation ended before it was complete"));
      } else {
        std::string out;
        take(prompt, **event, out);
        if (!out.empty()) co_await responder_.write(std::move(out));
      }
    }
  } catch (const std::exception& e) {
    spdlog::error("request {}: {}", http_.request_id, e.what());
    fail(engine_failure("the server failed while generating"));
  }
}

void Generation::fail(ApiError error) {
  if (error_ || aborted_) return;
  error_ = std::move(error);
  cancel_all();
}

void Generation::cancel_all() {
  for (std::size_t p = 0; p < streams_.size(); ++p) {
    for (std::uint32_t i = 0; i < request_.params.n; ++i) {
      if (!choices_[p * request_.params.n + i].text.finished()) streams_[p]->cancel(i);
    }
  }
}

void Generation::take(std::size_t prompt, const ChoiceEvent& event, std::string& out) {
  if (event.choice >= request_.params.n) {
    fail(engine_failure("the engine answered for a choice that does not exist"));
    return;
  }
  const auto index = static_cast<std::uint32_t>(prompt * request_.params.n + event.choice);
  if (const auto* logprobs = std::get_if<PromptLogprobsEvent>(&event.event)) {
    take_prompt_logprobs(prompt, *logprobs, out);
    return;
  }
  const auto& token = std::get<TokenEvent>(event.event);
  Choice& choice = choices_[index];
  if (choice.text.finished()) return;  // cancelled after a stop string; the rest is of no interest
  if (token.finish == FinishReason::kError || token.finish == FinishReason::kCancelled) {
    fail(engine_failure(token.error.empty() ? "the generation was cancelled by the server"
                                            : token.error));
    return;
  }
  if (token.has_token) note_token(choice);
  if (needs_prompt_logprobs() && prompt_logprobs_[prompt].empty()) {
    if (token.finish != FinishReason::kNone) {
      fail(engine_failure("the engine did not report the prompt's log-probabilities"));
    } else {
      choice.early.push_back(token);
    }
    return;
  }
  if (request_.prompt_only) {
    end_prompt_only(index, out);
  } else {
    take_token(index, token, out);
  }
}

void Generation::note_token(Choice& choice) {
  const auto now = Clock::now();
  if (choice.last_token) {
    context_.observer->token_gap(seconds_between(*choice.last_token, now));
  } else if (first_token_seconds_ < 0) {
    first_token_seconds_ = seconds_between(accepted_, now);
    context_.observer->first_token(first_token_seconds_);
  }
  choice.last_token = now;
}

void Generation::take_prompt_logprobs(std::size_t prompt, const PromptLogprobsEvent& event,
                                      std::string& out) {
  if (!needs_prompt_logprobs() || !prompt_logprobs_[prompt].empty()) return;
  const PreparedPrompt& prepared = request_.prompts[prompt];
  prompt_logprobs_[prompt] =
      prompt_entries(prepared.ids, event, *context_.text.tokenizer, prepared.hidden_prefix);
  for (std::uint32_t i = 0; i < request_.params.n; ++i) {
    const auto index = static_cast<std::uint32_t>(prompt * request_.params.n + i);
    for (const TokenEvent& token : std::exchange(choices_[index].early, {})) {
      if (!choices_[index].text.finished()) take_token(index, token, out);
    }
  }
}

// The echoed prompt opens the choice's text.
void Generation::begin_choice(std::uint32_t index, std::string& out) {
  Choice& choice = choices_[index];
  if (choice.echoed || !request_.params.output.echo) return;
  choice.echoed = true;
  const std::size_t prompt = index / request_.params.n;
  ChoiceDelta echo;
  echo.text = request_.prompts[prompt].echo_text;
  if (request_.params.output.logprobs >= 0) echo.logprobs = prompt_logprobs_[prompt];
  emit(index, std::move(echo), out);
}

void Generation::take_token(std::uint32_t index, const TokenEvent& event, std::string& out) {
  begin_choice(index, out);
  ChoiceDelta delta = choices_[index].text.push(event);
  if (delta.cancel) {
    streams_[index / request_.params.n]->cancel(index % request_.params.n);
  }
  emit(index, std::move(delta), out);
}

void Generation::echo_only(std::string& out) {
  for (std::uint32_t i = 0; i < choices_.size(); ++i) end_prompt_only(i, out);
}

// No token was asked for: the echoed prompt is all.
void Generation::end_prompt_only(std::uint32_t index, std::string& out) {
  ChoiceDelta end;
  end.finish_reason = "length";
  begin_choice(index, out);
  emit(index, std::move(end), out);
}

void Generation::emit(std::uint32_t index, ChoiceDelta delta, std::string& out) {
  Choice& choice = choices_[index];
  if (!delta.finish_reason.empty()) {
    --open_[index / request_.params.n];
    choice.whole.finish_reason = delta.finish_reason;
    choice.whole.stop_reason = delta.stop_reason;
  }
  if (request_.params.output.stream) {
    emit_chunk(index, std::move(delta), out);
    return;
  }
  choice.whole.text += delta.text;
  append(choice.whole.logprobs, delta.logprobs);
  append(choice.whole.token_ids, delta.token_ids);
}

// Tokens without certain text wait for the next chunk that has some, or for the end.
void Generation::emit_chunk(std::uint32_t index, ChoiceDelta delta, std::string& out) {
  Choice& choice = choices_[index];
  ChoiceDelta& pending = choice.pending;
  pending.text = std::move(delta.text);
  append(pending.logprobs, delta.logprobs);
  append(pending.token_ids, delta.token_ids);
  const bool end = !delta.finish_reason.empty();
  const bool something =
      !pending.text.empty() || !pending.logprobs.empty() || !pending.token_ids.empty();
  if (!pending.text.empty() || (end && something)) {
    out += sse_data(format_.delta_chunk(index, pending, !choice.began, chunk_usage()));
    pending = {};
    choice.began = true;
  }
  if (end) out += sse_data(format_.finish_chunk(index, delta, chunk_usage()));
}

// Chunks show it only when asked for, and summing over many choices is not free.
Usage Generation::chunk_usage() const {
  return request_.params.output.continuous_usage ? usage() : Usage{};
}

Usage Generation::usage() const {
  Usage usage;
  usage.prompt_tokens = start_.prompt_tokens;
  for (const Choice& choice : choices_) usage.completion_tokens += choice.text.tokens();
  for (const auto& stream : streams_) {
    usage.cached_tokens += stream->cached_prompt_tokens();
  }
  return usage;
}

asio::awaitable<void> Generation::answer() {
  if (aborted_) {
    report(RequestEnd::kClientGone);
    co_return;
  }
  if (error_) {
    report(RequestEnd::kFailed);
    co_await send_error(*error_);
    co_return;
  }
  report(RequestEnd::kComplete);
  if (!request_.params.output.stream) {
    std::vector<FinishedChoice> whole;
    for (Choice& choice : choices_) whole.push_back(std::move(choice.whole));
    HttpResponse response;
    response.body = format_.whole(whole, prompt_logprobs_, final_usage_);
    co_await responder_.send(std::move(response));
    co_return;
  }
  std::string end;
  if (request_.params.output.include_usage) end = sse_data(format_.usage_chunk(final_usage_));
  end += kSseDone;
  co_await responder_.write(std::move(end));
}

// After the first byte an error is one event, and the stream ends without [DONE].
asio::awaitable<void> Generation::send_error(const ApiError& error) {
  spdlog::warn("request {} failed: {}", http_.request_id, error.message);
  if (responder_.started()) {
    co_await responder_.write(sse_data(error_body(error)));
    co_return;
  }
  HttpResponse response = context_.reject(route_, error);
  co_await responder_.send(std::move(response));
}

void Generation::report(RequestEnd end) {
  RequestOutcome outcome;
  outcome.start = start_;
  outcome.end = end;
  outcome.began = responder_.started();
  for (const Choice& choice : choices_)
    outcome.finish_reasons.push_back(choice.whole.finish_reason);
  outcome.generated_tokens = final_usage_.completion_tokens;
  outcome.cached_tokens = final_usage_.cached_tokens;
  outcome.seconds = seconds_between(accepted_, Clock::now());
  outcome.first_token_seconds = first_token_seconds_;
  context_.observer->finished(outcome);
}

}  // namespace millrace::net
