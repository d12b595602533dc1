// Bodies of /v1/completions, /v1/chat/completions, /tokenize and /detokenize into checked values.
//
// Every error names the field by its path. Fields of OpenAI's or vLLM's API that are not served are
// refused where ignoring them would change the answer, and accepted where it would not; fields that
// neither API knows are ignored, as vLLM does, and logged at debug level. Pure functions of their
// arguments, except that a missing seed is drawn from std::random_device.
#pragma once

#include <string>

#include "net/openai_types.h"

namespace millrace::net {

// What parsing needs to know of the server.
struct ParseContext {
  ApiLimits limits;  // vocab_size resolved
  SamplingDefaults defaults;
  bool content_parts = false;  // the chat template takes lists of parts itself
  bool renders_tools = false;  // the chat template shows tools
};

ApiResult<CompletionRequest> parse_completion(const Json& body, const ParseContext& context);
ApiResult<ChatRequest> parse_chat(const Json& body, const ParseContext& context);

struct TokenizeRequest {
  std::optional<std::string> model;
  std::variant<std::string, ChatPrompt> input;
  bool add_special_tokens = true;  // for a plain prompt
  bool return_token_strings = false;
};
ApiResult<TokenizeRequest> parse_tokenize(const Json& body, const ParseContext& context);

struct DetokenizeRequest {
  std::optional<std::string> model;
  std::vector<std::int32_t> tokens;
};
ApiResult<DetokenizeRequest> parse_detokenize(const Json& body, const ParseContext& context);

}  // namespace millrace::net
