// The OpenAI API as values: what a validated request asks for, and an error in OpenAI's form.
#pragma once

#include <boost/system/result.hpp>
#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "config/sampling_params.h"
#include "net/engine.h"
#include "net/text/stop_strings.h"

namespace millrace::net {

using Json = nlohmann::ordered_json;  // templates see the keys of tools in the client's order

// An answer other than 200: the four fields of OpenAI's error object and its HTTP status.
struct ApiError {
  ApiError() = default;  // no aggregate: a number must not convert to an error

  unsigned status = 400;
  std::string message;  // a sentence for people that says the fix
  std::string type = "invalid_request_error";
  std::optional<std::string> param;  // path of the field: "messages[2].role"
  std::optional<std::string> code;   // stable word for programs
  std::optional<std::chrono::seconds> retry_after;
};

template <class T>
using ApiResult = boost::system::result<T, ApiError>;

[[noreturn]] inline void throw_exception_from_error(const ApiError& e,
                                                    const boost::source_location&) {
  throw std::runtime_error(e.message);
}

// What a request gets that does not say otherwise. OpenAI's values, unless the model's
// generation_config.json or the operator says something else.
struct SamplingDefaults {
  float temperature = 1.0F;
  float top_p = 1.0F;
  std::int32_t top_k = 0;  // 0: off
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  std::uint32_t completion_max_tokens = 16;      // /v1/completions without max_tokens
  std::optional<std::uint32_t> chat_max_tokens;  // chat without: the rest of the context
};

// Bounds of one request (contract C3).
struct ApiLimits {
  std::uint32_t max_n = 128;
  std::uint32_t max_prompts = 256;  // prompts in one /v1/completions body
  std::uint32_t max_choices = 512;  // prompts times n
  std::uint32_t max_stop_strings = 16;
  std::uint32_t max_stop_token_ids = 256;
  std::uint32_t max_logprobs = 20;
  std::uint32_t max_logit_bias = 1024;  // entries
  std::uint32_t max_context = 0;        // tokens, prompt and answer; 0: what the engine says
  std::int32_t vocab_size = 0;          // token ids below it; 0: the tokenizer's
};

// How the answer is to look.
struct OutputOptions {
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool include_stop = false;  // stop strings and stop tokens belong to the text
  bool skip_special_tokens = true;
  bool return_token_ids = false;
  bool echo = false;
  std::int32_t logprobs = -1;         // alternatives shown beside each token; -1 none at all
  std::int32_t prompt_logprobs = -1;  // the same for the prompt (vLLM's field); -1 none
};

// The fields that both routes share.
struct GenerationParams {
  std::string model;
  SamplingParams sampling;  // seed resolved
  std::uint32_t n = 1;
  std::optional<std::uint32_t> max_tokens;
  std::uint32_t min_tokens = 0;
  std::vector<std::int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  OutputOptions output;
};

using Prompt = std::variant<std::string, std::vector<std::int32_t>>;

struct CompletionRequest {
  GenerationParams params;
  std::vector<Prompt> prompts;  // at least one
  bool add_special_tokens = true;
};

// The part of a chat that the template turns into a prompt.
struct ChatPrompt {
  Json messages = Json::array();  // content a string or a list of text parts, roles checked
  Json tools;                     // an array, or null
  Json template_kwargs = Json::object();
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool add_special_tokens = false;
};

struct ChatRequest {
  GenerationParams params;
  ChatPrompt prompt;
};

struct Usage {
  std::uint64_t prompt_tokens = 0;
  std::uint64_t completion_tokens = 0;
  std::uint64_t cached_tokens = 0;
};

}  // namespace millrace::net
