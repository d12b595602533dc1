// One generation request from submission to its answer. Internal to net/api_*.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "net/api_context.h"
#include "net/openai_choice.h"
#include "net/openai_format.h"

namespace millrace::net {

// Lives in its handler's coroutine and is used only on that connection's strand. One stream per
// prompt; each is read by a coroutine of its own when there are several.
class Generation {
 public:
  Generation(ApiContext& context, const PreparedRequest& request, const HttpRequest& http,
             Responder& responder);

  boost::asio::awaitable<void> run();

 private:
  using Clock = std::chrono::steady_clock;

  struct Choice {
    ChoiceText text;
    FinishedChoice whole;  // the answer so far, when it is not streamed
    ChoiceDelta pending;   // ids and log-probabilities that no chunk has carried yet
    bool echoed = false;   // the prompt was put in front
    bool began = false;    // a chunk with a delta was sent
    std::optional<Clock::time_point> last_token;
    std::vector<TokenEvent> early;  // tokens that came before the prompt's log-probabilities
  };

  ApiResult<bool> submit();
  boost::asio::awaitable<void> read_all();
  boost::asio::awaitable<void> read_prompt(std::size_t prompt);
  void take(std::size_t prompt, const ChoiceEvent& event, std::string& out);
  void take_token(std::uint32_t index, const TokenEvent& event, std::string& out);
  void take_prompt_logprobs(std::size_t prompt, const PromptLogprobsEvent& event, std::string& out);
  void begin_choice(std::uint32_t index, std::string& out);
  void emit(std::uint32_t index, ChoiceDelta delta, std::string& out);
  void emit_chunk(std::uint32_t index, ChoiceDelta delta, std::string& out);
  void echo_only(std::string& out);
  void end_prompt_only(std::uint32_t index, std::string& out);
  void note_token(Choice& choice);
  void fail(ApiError error);
  void cancel_all();
  Usage usage() const;
  Usage chunk_usage() const;
  boost::asio::awaitable<void> answer();
  boost::asio::awaitable<void> send_error(const ApiError& error);
  void report(RequestEnd end);

  bool needs_prompt_logprobs() const { return request_.params.sampling.prompt_logprobs; }

  ApiContext& context_;
  const PreparedRequest& request_;
  const HttpRequest& http_;
  Responder& responder_;
  AnswerFormat format_;
  std::string_view route_;

  std::vector<std::unique_ptr<GenerationStream>> streams_;  // one per prompt
  std::vector<Choice> choices_;                             // prompt * n + choice
  std::vector<std::uint32_t> open_;                         // unfinished choices per prompt
  std::vector<std::vector<LogprobEntry>> prompt_logprobs_;  // per prompt, empty until known
  std::optional<ApiError> error_;
  bool aborted_ = false;  // the client is gone
  std::size_t readers_ = 0;
  std::optional<boost::asio::steady_timer> readers_done_;

  RequestStart start_;
  Clock::time_point accepted_;
  double first_token_seconds_ = -1;
  Usage final_usage_;
};

}  // namespace millrace::net
