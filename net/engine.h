// The seam between the API (HTTP, JSON, text) and whatever produces tokens (the gateway's journal
// and cells in production, a scripted source in tests of the API).
//
// Everything here runs on the gateway's io_context; awaitables resume on the caller's executor.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "config/result.h"
#include "coordinator/request.h"

namespace millrace::net {

// One client request after validation, templating and tokenizing. It becomes n sequences that share
// the prompt; choice i samples with sampling.choice = i.
struct GenerateRequest {
  std::string request_id;            // x-request-id, for logs
  std::vector<std::int32_t> prompt;  // at least one token
  std::uint32_t n = 1;
  std::uint32_t max_new_tokens = 16;  // 0: only the prompt's log-probabilities, then an end
  std::uint32_t min_new_tokens = 0;
  std::vector<std::int32_t> stop_token_ids;  // empty with ignore_eos
  SamplingParams sampling;                   // seed resolved
};

// What a stream yields: tokens of choice `choice` in index order, each exactly once; prompt
// log-probabilities before the first token; and one finishing event per choice.
struct ChoiceEvent {
  std::uint32_t choice = 0;
  std::variant<TokenEvent, PromptLogprobsEvent> event;
};

class GenerationStream {
 public:
  virtual ~GenerationStream() = default;  // cancels every choice that has not finished

  // Waits for the next event. nullopt after all choices have finished. Events arrive through a
  // bounded buffer; a consumer that falls behind by more than the configured number of tokens has
  // its request cancelled with kResourceExhausted (contract C3).
  virtual boost::asio::awaitable<Result<std::optional<ChoiceEvent>>> next() = 0;

  // Cancels one choice early (stop string found, client gone). Idempotent.
  // When no choice is left unfinished, a pending next() completes at once.
  virtual void cancel(std::uint32_t choice) = 0;

  // Prompt tokens that came from the prefix cache; known from the first event on.
  virtual std::uint32_t cached_prompt_tokens() const { return 0; }
};

struct EngineStatus {
  bool ready = false;        // contract C4
  std::string reason;        // why not ready: "loading", "draining", "no step for 12 s", ...
  std::uint32_t queued = 0;  // accepted, not yet running
  std::uint32_t running = 0;
  std::uint32_t max_context = 0;  // smallest over the cells; 0 while none is known
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Admits or refuses at once: kUnavailable (no healthy cell, draining), kResourceExhausted (queue
  // full; retry_after() says when to come back).
  virtual Result<std::unique_ptr<GenerationStream>> submit(GenerateRequest request) = 0;
  virtual EngineStatus status() const = 0;
  virtual std::chrono::seconds retry_after() const = 0;
};

}  // namespace millrace::net
