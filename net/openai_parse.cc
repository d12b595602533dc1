#include "net/openai_parse.h"

#include <fmt/format.h>

#include "net/openai_error.h"
#include "net/openai_fields.h"

namespace millrace::net {
namespace {

std::optional<std::uint32_t> read_max_tokens(FieldReader& fields, const std::string& name,
                                             std::int64_t low) {
  const auto count = fields.integer(name, low, INT64_MAX);
  if (!count) return std::nullopt;
  // More than any context is told as such later, with the prompt's length.
  return static_cast<std::uint32_t>(std::min<std::int64_t>(*count, INT32_MAX));
}

void check_min_tokens(FieldReader& fields, const GenerationParams& params) {
  if (params.max_tokens && params.min_tokens > *params.max_tokens) {
    fields.fail("min_tokens", "min_tokens must not exceed max_tokens");
  }
}

// The engine reports one number of alternatives for prompt and answer.
void set_engine_logprobs(GenerationParams& params) {
  const OutputOptions& output = params.output;
  params.sampling.logprobs = std::max(output.logprobs, output.prompt_logprobs);
  params.sampling.prompt_logprobs =
      output.prompt_logprobs >= 0 || (output.echo && output.logprobs >= 0);
}

void read_prompts(FieldReader& fields, const ParseContext& context, std::vector<Prompt>& prompts) {
  const Json* prompt = fields.get("prompt");
  const std::string shape =
      "prompt must be a string, an array of strings, an array of token ids, or an array of those";
  if (prompt == nullptr) {
    fields.fail("prompt", "prompt is missing", "missing_required_parameter");
    return;
  }
  if (prompt->is_string()) {
    prompts.emplace_back(prompt->get<std::string>());
    return;
  }
  if (!prompt->is_array() || prompt->empty()) {
    fields.fail("prompt", shape, "invalid_type");
    return;
  }
  const bool one = prompt->front().is_number();
  if (!one && prompt->size() > context.limits.max_prompts) {
    fields.fail("prompt", fmt::format("at most {} prompts are accepted in one request, not {}",
                                      context.limits.max_prompts, prompt->size()));
    return;
  }
  for (std::size_t i = 0; i < (one ? 1 : prompt->size()); ++i) {
    const Json& entry = one ? *prompt : (*prompt)[i];
    const std::string path = one ? "prompt" : fmt::format("prompt[{}]", i);
    if (entry.is_string()) {
      prompts.emplace_back(entry.get<std::string>());
      continue;
    }
    if (!entry.is_array() || entry.empty()) {
      fields.fail(path, shape, "invalid_type");
      return;
    }
    auto ids = token_ids_of(entry, path, context.limits.vocab_size);
    if (ids.has_error()) {
      fields.fail(ids.error());
      return;
    }
    prompts.emplace_back(std::move(*ids));
  }
}

}  // namespace

ApiResult<CompletionRequest> parse_completion(const Json& body, const ParseContext& context) {
  FieldReader fields(body);
  CompletionRequest request;
  GenerationParams& params = request.params;
  read_params(fields, context, params);
  read_prompts(fields, context, request.prompts);
  if (request.prompts.size() * params.n > context.limits.max_choices) {
    fields.fail("n", fmt::format("{} prompts times n {} is more than the {} choices of one request",
                                 request.prompts.size(), params.n, context.limits.max_choices));
  }
  params.output.echo = fields.boolean("echo").value_or(false);
  params.output.logprobs = static_cast<std::int32_t>(
      fields.integer("logprobs", 0, context.limits.max_logprobs).value_or(-1));
  params.max_tokens = read_max_tokens(fields, "max_tokens", params.output.echo ? 0 : 1);
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  check_min_tokens(fields, params);
  fields.refuse("suffix", "suffix (inserting text) is not served here");
  read_unserved(fields);
  if (fields.error()) return *fields.error();
  log_unknown(fields, "/v1/completions");
  set_engine_logprobs(params);
  return request;
}

ApiResult<ChatRequest> parse_chat(const Json& body, const ParseContext& context) {
  FieldReader fields(body);
  ChatRequest request;
  GenerationParams& params = request.params;
  read_params(fields, context, params);
  read_chat_prompt(fields, context, request.prompt);
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, context.limits.max_logprobs);
  if (top && !logprobs) fields.fail("top_logprobs", "top_logprobs needs logprobs: true");
  if (logprobs) params.output.logprobs = static_cast<std::int32_t>(top.value_or(0));
  const auto old_name = read_max_tokens(fields, "max_tokens", 1);
  const auto new_name = read_max_tokens(fields, "max_completion_tokens", 1);
  if (old_name && new_name && *old_name != *new_name) {
    fields.fail("max_tokens", "max_tokens and max_completion_tokens differ; send only the latter");
  }
  params.max_tokens = new_name ? new_name : old_name;
  check_min_tokens(fields, params);
  for (const char* name : {"functions", "audio", "web_search_options", "documents", "chat_template",
                           "echo", "mm_processor_kwargs"}) {
    fields.refuse(name, std::string(name) + " is not served here; leave it out");
  }
  fields.refuse("function_call", "function_call is not served here; use tools", "none");
  fields.refuse("modalities", "only text is served here", Json::array({"text"}));
  read_unserved(fields);
  if (fields.error()) return *fields.error();
  log_unknown(fields, "/v1/chat/completions");
  set_engine_logprobs(params);
  return request;
}

ApiResult<TokenizeRequest> parse_tokenize(const Json& body, const ParseContext& context) {
  FieldReader fields(body);
  TokenizeRequest request;
  request.model = fields.string("model");
  request.return_token_strings = fields.boolean("return_token_strs").value_or(false);
  if (fields.has("messages")) {
    ChatPrompt prompt;
    read_chat_prompt(fields, context, prompt);
    request.input = std::move(prompt);
  } else {
    auto text = fields.string("prompt");
    if (!text) fields.fail("prompt", "prompt or messages is missing", "missing_required_parameter");
    request.input = std::move(text).value_or("");
    request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  }
  if (fields.error()) return *fields.error();
  return request;
}

ApiResult<DetokenizeRequest> parse_detokenize(const Json& body, const ParseContext& context) {
  FieldReader fields(body);
  DetokenizeRequest request;
  request.model = fields.string("model");
  auto tokens = fields.token_ids("tokens", context.limits.vocab_size, SIZE_MAX);
  if (!tokens) fields.fail("tokens", "tokens is missing", "missing_required_parameter");
  if (fields.error()) return *fields.error();
  request.tokens = std::move(*tokens);
  return request;
}

}  // namespace millrace::net
