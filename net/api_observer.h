// What the API tells of its requests; monitoring turns it into metrics. Called on connection
// strands: with several io threads an implementation must be thread-safe. Times are in seconds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::net {

struct RequestStart {
  std::string_view route;  // "/v1/chat/completions"
  std::string_view request_id;
  std::uint64_t prompt_tokens = 0;  // of all prompts
  std::uint32_t prompts = 1;
  std::uint32_t n = 1;
  std::uint32_t max_tokens = 0;  // of the longest answer allowed
  bool stream = false;
};

enum class RequestEnd { kComplete, kClientGone, kFailed };

struct RequestOutcome {
  RequestStart start;
  RequestEnd end = RequestEnd::kComplete;
  bool began = false;  // the head of the answer had been sent; a kFailed that had not gets an
                       // answer with an error status, of which rejected() tells
  std::vector<std::string>
      finish_reasons;                  // "stop" or "length" per choice; "" if it did not finish
  std::uint64_t generated_tokens = 0;  // of all choices
  std::uint64_t cached_tokens = 0;
  double seconds = 0;               // from acceptance
  double first_token_seconds = -1;  // from acceptance; -1: none came
};

class ApiObserver {
 public:
  virtual ~ApiObserver() = default;
  virtual void accepted(const RequestStart&) {}
  // Every answer with an error status. `reason` is the error's code: "model_not_found", ...
  virtual void rejected(std::string_view route, unsigned status, std::string_view reason) {
    (void)route, (void)status, (void)reason;
  }
  virtual void first_token(double seconds) { (void)seconds; }
  virtual void token_gap(double seconds) { (void)seconds; }  // between two tokens of one choice
  virtual void finished(const RequestOutcome&) {}
};

}  // namespace millrace::net
