// From a parsed request to what the engine gets: template, tokens, lengths. Pure; may run on any
// thread, which matters because a large prompt takes long.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "net/engine.h"
#include "net/openai_types.h"
#include "net/text/chat_template.h"
#include "net/text/stop_strings.h"
#include "net/text/tokenizer.h"

namespace millrace::net {

// What turning text into tokens needs. The references outlive every request.
struct TextContext {
  const text::Tokenizer* tokenizer = nullptr;
  const text::ChatTemplate* chat_template = nullptr;  // null: the model has none
  std::vector<std::string> neutralize;                // RenderOptions::neutralize
  std::vector<std::int32_t> eos_token_ids;
  std::size_t max_piece_bytes = 0;  // of the longest token: bounds tokens from below
};

std::size_t longest_piece(const text::Tokenizer& tokenizer);

struct PreparedPrompt {
  std::vector<std::int32_t> ids;
  std::string echo_text;          // filled for `echo`
  std::size_t hidden_prefix = 0;  // leading tokens that are not in echo_text (an added BOS)
  std::uint32_t max_new_tokens = 0;
};

struct PreparedRequest {
  bool chat = false;
  GenerationParams params;
  std::vector<PreparedPrompt> prompts;
  text::StopStrings stops;
  // echo with max_tokens 0: only the prompt is wanted. The engine is asked for one token, which is
  // not shown, when the prompt's log-probabilities are; else it is not asked at all.
  bool prompt_only = false;

  GenerateRequest engine_request(std::size_t prompt, const std::string& request_id,
                                 const TextContext& text) const;
};

// `max_context` is in tokens, prompt and answer; 0: unknown.
ApiResult<PreparedRequest> prepare(CompletionRequest request, const TextContext& text,
                                   const SamplingDefaults& defaults, std::uint32_t max_context);
ApiResult<PreparedRequest> prepare(ChatRequest request, const TextContext& text,
                                   const SamplingDefaults& defaults, std::uint32_t max_context);

// The tokens of a templated chat, as prepare() makes them.
ApiResult<std::vector<std::int32_t>> encode_chat(const ChatPrompt& prompt, const TextContext& text,
                                                 std::uint32_t max_context);

// Refuses text that cannot fit before it is tokenized.
ApiResult<std::vector<std::int32_t>> encode_text(const std::string& input, bool add_special,
                                                 const TextContext& text, std::uint32_t max_context,
                                                 const std::string& param);

}  // namespace millrace::net
