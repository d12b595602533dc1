// An Engine that says what a test wrote down, token by token, and remembers what was asked of it.
#pragma once

#include <atomic>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <deque>
#include <mutex>
#include <optional>

#include "net/engine.h"

namespace millrace::net::testing {

struct Script {
  std::vector<std::vector<std::int32_t>> choices;  // ids of choice i; the last script repeats
  FinishReason finish = FinishReason::kStop;       // how each ends; kStop adds `stop_token`
  std::int32_t stop_token = 7;
  std::chrono::microseconds gap{0};           // before each token
  bool endless = false;                       // repeats its tokens until cancelled
  std::size_t fail_after = SIZE_MAX;          // events, then next() is an error
  std::size_t choice_error_after = SIZE_MAX;  // tokens of choice 0, then a kError event
  std::uint32_t cached = 0;
};

class ScriptedEngine : public Engine {
 public:
  Result<std::unique_ptr<GenerationStream>> submit(GenerateRequest request) override;
  EngineStatus status() const override {
    const std::lock_guard lock(mutex);
    return engine_status;
  }
  std::chrono::seconds retry_after() const override { return std::chrono::seconds(7); }

  mutable std::mutex mutex;  // guards the four below
  Script script;
  EngineStatus engine_status{
      .ready = true, .reason = "", .queued = 0, .running = 0, .max_context = 2000};
  std::optional<Error> refuse;
  std::vector<GenerateRequest> requests;

  std::atomic<int> live{0};  // streams that exist
  std::atomic<int> cancels{0};
  std::atomic<int> max_live{0};
  std::atomic<std::size_t> refuse_after{SIZE_MAX};  // submissions, then kResourceExhausted
};

class ScriptedStream : public GenerationStream {
 public:
  ScriptedStream(ScriptedEngine& engine, Script script, GenerateRequest request)
      : engine_(engine),
        script_(std::move(script)),
        request_(std::move(request)),
        next_(request_.n, 0),
        done_(request_.n, false) {
    engine_.max_live = std::max(engine_.max_live.load(), ++engine_.live);
    if (request_.sampling.prompt_logprobs) {
      PromptLogprobsEvent event;
      for (std::size_t i = 1; i < request_.prompt.size(); ++i) {
        event.targets.push_back({request_.prompt[i], -0.5F * static_cast<float>(i)});
        event.top.push_back({{request_.prompt[i], -0.5F * static_cast<float>(i)}, {42, -9.0F}});
      }
      for (std::uint32_t c = 0; c < request_.n; ++c) first_.push_back({c, event});
    }
  }
  ~ScriptedStream() override { --engine_.live; }

  boost::asio::awaitable<Result<std::optional<ChoiceEvent>>> next() override {
    if (!first_.empty()) {
      ChoiceEvent event = std::move(first_.front());
      first_.pop_front();
      co_return std::optional<ChoiceEvent>(std::move(event));
    }
    if (script_.gap.count() > 0) {
      timer_.emplace(co_await boost::asio::this_coro::executor, script_.gap);
      boost::system::error_code ignored;
      co_await timer_->async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
      timer_.reset();
    }
    if (events_++ == script_.fail_after) {
      co_return Error{ErrorCode::kResourceExhausted, "", "the client reads too slowly"};
    }
    for (std::size_t tries = 0; tries < done_.size(); ++tries) {
      const auto choice = static_cast<std::uint32_t>(turn_++ % done_.size());
      if (!done_[choice]) co_return std::optional<ChoiceEvent>(token_of(choice));
    }
    co_return std::optional<ChoiceEvent>(std::nullopt);
  }

  void cancel(std::uint32_t choice) override {
    if (!done_.at(choice)) ++engine_.cancels;
    done_[choice] = true;
    if (timer_) timer_->cancel();
  }

  std::uint32_t cached_prompt_tokens() const override { return script_.cached; }

 private:
  ChoiceEvent token_of(std::uint32_t choice) {
    const auto& ids = script_.choices[std::min<std::size_t>(choice, script_.choices.size() - 1)];
    std::size_t& at = next_[choice];
    TokenEvent event;
    event.index = static_cast<std::uint32_t>(at);
    if (request_.max_new_tokens == 0) {  // the prompt's log-probabilities were all
      event.has_token = false;
      event.finish = FinishReason::kLength;
    } else if (choice == 0 && at == script_.choice_error_after) {
      event.has_token = false;
      event.finish = FinishReason::kError;
      event.error = "the cell gave up";
    } else if (!script_.endless && at == ids.size()) {
      event.token.token = script_.stop_token;
      event.stop_token = true;
      event.finish = FinishReason::kStop;
    } else {
      event.token = {ids[at % ids.size()], -0.25F * static_cast<float>(at + 1)};
      if (request_.sampling.logprobs > 0) {
        event.top = {event.token, {41, -20.0F}, {42, -30.0F}};
        event.top.resize(
            std::min<std::size_t>(3, static_cast<std::size_t>(request_.sampling.logprobs)));
      }
      const bool last = !script_.endless && at + 1 == ids.size();
      if ((last && script_.finish == FinishReason::kLength) || at + 1 == request_.max_new_tokens) {
        event.finish = FinishReason::kLength;
      }
    }
    ++at;
    done_[choice] = event.finish != FinishReason::kNone;
    return {choice, std::move(event)};
  }

  ScriptedEngine& engine_;
  Script script_;
  GenerateRequest request_;
  std::deque<ChoiceEvent> first_;
  std::vector<std::size_t> next_;
  std::vector<bool> done_;
  std::size_t turn_ = 0;
  std::size_t events_ = 0;
  std::optional<boost::asio::steady_timer> timer_;
};

inline Result<std::unique_ptr<GenerationStream>> ScriptedEngine::submit(GenerateRequest request) {
  const std::lock_guard lock(mutex);
  if (refuse) return *refuse;
  if (requests.size() >= refuse_after) {
    return Error{ErrorCode::kResourceExhausted, "", "the queue is full"};
  }
  requests.push_back(request);
  return std::unique_ptr<GenerationStream>(
      std::make_unique<ScriptedStream>(*this, script, std::move(request)));
}

}  // namespace millrace::net::testing
