// Log-probabilities in the three shapes that clients know.
#pragma once

#include <cstdint>
#include <vector>

#include "net/openai_choice.h"
#include "net/openai_types.h"
#include "net/text/tokenizer.h"

namespace millrace::net {

// Each shows at most `top` alternatives. Log-probabilities that JSON cannot write (minus infinity)
// become -9999, as in vLLM.

// Chat: {"content":[{token, logprob, bytes, top_logprobs}], "refusal":null}.
Json chat_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                   const text::Tokenizer& tokenizer);

// Completions: {text_offset, token_logprobs, tokens, top_logprobs}. The chosen token is always
// among its alternatives, so there may be one more than asked for.
Json completion_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                         const text::Tokenizer& tokenizer);

// vLLM's prompt_logprobs: null, then for each token {"id": {logprob, rank, decoded_token}}; rank
// (from 1) is null for a token that is not among the alternatives.
Json vllm_prompt_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                          const text::Tokenizer& tokenizer);

}  // namespace millrace::net
