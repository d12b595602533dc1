#include "net/openai_prepare.h"

#include <fmt/format.h>

#include <algorithm>

#include "net/openai_error.h"

namespace millrace::net {
namespace {

ApiError too_long(const std::string& param, std::uint32_t max_context, const std::string& what) {
  return bad_field(
      param,
      fmt::format("This model's maximum context length is {} tokens, but {}", max_context, what),
      "context_length_exceeded");
}

ApiError text_error(const Error& error, const std::string& param) {
  ApiError out = bad_field(param, error.message);
  if (error.code == ErrorCode::kInternal) out.status = 500, out.type = "server_error";
  return out;
}

// How many tokens may be generated after this prompt.
ApiResult<std::uint32_t> answer_length(const GenerationParams& params, std::size_t prompt_tokens,
                                       std::optional<std::uint32_t> otherwise,
                                       std::uint32_t max_context, const std::string& param) {
  const std::uint64_t context = max_context == 0 ? INT32_MAX : max_context;
  const std::uint64_t wanted = params.max_tokens.value_or(1);
  if (prompt_tokens + std::min<std::uint64_t>(wanted, 1) > context) {
    return too_long(param, max_context,
                    fmt::format("the prompt has {} tokens; shorten it", prompt_tokens));
  }
  if (params.max_tokens) {
    if (prompt_tokens + wanted > context) {
      return too_long("max_tokens", max_context,
                      fmt::format("the request asks for {} ({} in the prompt, {} in the answer); "
                                  "shorten the prompt or the answer",
                                  prompt_tokens + wanted, prompt_tokens, wanted));
    }
    return *params.max_tokens;
  }
  const std::uint64_t rest = context - prompt_tokens;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(rest, otherwise.value_or(INT32_MAX)));
}

ApiResult<PreparedRequest> begin(GenerationParams params) {
  PreparedRequest out;
  auto stops = text::StopStrings::create(params.stop);
  if (stops.has_error()) return text_error(stops.error(), stops.error().field);
  out.stops = std::move(*stops);
  out.prompt_only = params.output.echo && params.max_tokens == 0U;
  out.params = std::move(params);
  return out;
}

std::optional<ApiError> finish_prompt(PreparedRequest& out, PreparedPrompt prompt,
                                      std::optional<std::uint32_t> otherwise,
                                      std::uint32_t max_context, const std::string& param) {
  if (prompt.ids.empty()) return bad_field(param, "the prompt has no tokens; send some text");
  auto length = answer_length(out.params, prompt.ids.size(), otherwise, max_context, param);
  if (length.has_error()) return length.error();
  prompt.max_new_tokens = *length;
  out.prompts.push_back(std::move(prompt));
  return std::nullopt;
}

}  // namespace

std::size_t longest_piece(const text::Tokenizer& tokenizer) {
  std::size_t longest = 1;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.id_to_piece(id).size());
  }
  return longest;
}

ApiResult<std::vector<std::int32_t>> encode_text(const std::string& input, bool add_special,
                                                 const TextContext& text, std::uint32_t max_context,
                                                 const std::string& param) {
  const std::size_t at_least = input.size() / std::max<std::size_t>(text.max_piece_bytes, 1);
  if (max_context != 0 && at_least > max_context) {
    return too_long(param, max_context,
                    fmt::format("the prompt has more than {} tokens; shorten it", at_least));
  }
  auto ids = text.tokenizer->encode(input, {.add_special = add_special, .parse_special = true});
  if (ids.has_error()) return text_error(ids.error(), param);
  return std::move(*ids);
}

ApiResult<std::vector<std::int32_t>> encode_chat(const ChatPrompt& prompt, const TextContext& text,
                                                 std::uint32_t max_context) {
  if (text.chat_template == nullptr) {
    return bad_field("messages", "this model has no chat template; use /v1/completions",
                     "unsupported_parameter");
  }
  text::RenderOptions options;
  options.add_generation_prompt = prompt.add_generation_prompt;
  options.continue_final_message = prompt.continue_final_message;
  options.variables = prompt.template_kwargs;
  options.neutralize = text.neutralize;
  auto rendered = text.chat_template->render(prompt.messages, prompt.tools, options);
  if (rendered.has_error()) return text_error(rendered.error(), "messages");
  return encode_text(*rendered, prompt.add_special_tokens, text, max_context, "messages");
}

ApiResult<PreparedRequest> prepare(CompletionRequest request, const TextContext& text,
                                   const SamplingDefaults& defaults, std::uint32_t max_context) {
  auto out = begin(std::move(request.params));
  if (out.has_error()) return out.error();
  for (std::size_t i = 0; i < request.prompts.size(); ++i) {
    const std::string param = request.prompts.size() == 1 ? "prompt" : fmt::format("prompt[{}]", i);
    PreparedPrompt prompt;
    if (auto* input = std::get_if<std::string>(&request.prompts[i])) {
      auto ids = encode_text(*input, request.add_special_tokens, text, max_context, param);
      if (ids.has_error()) return ids.error();
      prompt.ids = std::move(*ids);
      if (out->params.output.echo) {
        prompt.echo_text = std::move(*input);
        prompt.hidden_prefix = request.add_special_tokens && text.tokenizer->adds_bos() ? 1 : 0;
      }
    } else {
      prompt.ids = std::move(std::get<std::vector<std::int32_t>>(request.prompts[i]));
      if (out->params.output.echo) prompt.echo_text = text.tokenizer->decode(prompt.ids, false);
    }
    if (auto error = finish_prompt(*out, std::move(prompt), defaults.completion_max_tokens,
                                   max_context, param)) {
      return *error;
    }
  }
  return out;
}

ApiResult<PreparedRequest> prepare(ChatRequest request, const TextContext& text,
                                   const SamplingDefaults& defaults, std::uint32_t max_context) {
  auto out = begin(std::move(request.params));
  if (out.has_error()) return out.error();
  out->chat = true;
  PreparedPrompt prompt;
  auto ids = encode_chat(request.prompt, text, max_context);
  if (ids.has_error()) return ids.error();
  prompt.ids = std::move(*ids);
  if (auto error = finish_prompt(*out, std::move(prompt), defaults.chat_max_tokens, max_context,
                                 "messages")) {
    return *error;
  }
  return out;
}

GenerateRequest PreparedRequest::engine_request(std::size_t prompt, const std::string& request_id,
                                                const TextContext& text) const {
  GenerateRequest out;
  out.request_id = request_id;
  out.prompt = prompts[prompt].ids;
  out.n = params.n;
  out.max_new_tokens = prompt_only ? 0 : std::max(prompts[prompt].max_new_tokens, 1U);
  out.min_new_tokens = std::min(params.min_tokens, out.max_new_tokens);
  out.stop_token_ids = params.stop_token_ids;
  if (!params.ignore_eos) {
    out.stop_token_ids.insert(out.stop_token_ids.end(), text.eos_token_ids.begin(),
                              text.eos_token_ids.end());
  }
  std::sort(out.stop_token_ids.begin(), out.stop_token_ids.end());
  out.stop_token_ids.erase(std::unique(out.stop_token_ids.begin(), out.stop_token_ids.end()),
                           out.stop_token_ids.end());
  out.sampling = params.sampling;
  return out;
}

}  // namespace millrace::net
