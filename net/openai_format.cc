#include "net/openai_format.h"

#include <fmt/format.h>

#include "net/http_router.h"
#include "net/openai_logprobs.h"

namespace millrace::net {
namespace {

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

template <class Choice>
void add_stop_reason(const Choice& choice, Json& out) {
  if (const auto* text = std::get_if<std::string>(&choice.stop_reason)) out["stop_reason"] = *text;
  if (const auto* id = std::get_if<std::int32_t>(&choice.stop_reason)) out["stop_reason"] = *id;
}

// The inside of an object, to be joined with more.
std::string fields_of(const Json& object) {
  const std::string text = to_text(object);
  return text.substr(1, text.size() - 2);
}

}  // namespace

Json usage_json(const Usage& usage) {
  Json out;
  out["prompt_tokens"] = usage.prompt_tokens;
  out["completion_tokens"] = usage.completion_tokens;
  out["total_tokens"] = usage.prompt_tokens + usage.completion_tokens;
  out["prompt_tokens_details"]["cached_tokens"] = usage.cached_tokens;
  return out;
}

AnswerFormat::AnswerFormat(const PreparedRequest& request, const text::Tokenizer& tokenizer,
                           std::string model, std::string fingerprint)
    : request_(request),
      tokenizer_(tokenizer),
      id_((request.chat ? "chatcmpl-" : "cmpl-") + new_request_id()),
      model_(std::move(model)),
      fingerprint_(std::move(fingerprint)),
      created_(std::time(nullptr)) {
  Json head;
  head["id"] = id_;
  head["object"] = request.chat ? "chat.completion.chunk" : "text_completion";
  head["created"] = created_;
  head["model"] = model_;
  head["system_fingerprint"] = fingerprint_;
  chunk_head_ = "{" + fields_of(head) + ",\"choices\":[";
}

const std::vector<std::int32_t>& AnswerFormat::prompt_ids(std::uint32_t choice) const {
  return request_.prompts[choice / request_.params.n].ids;
}

// usage: null in every chunk before the last one when it was asked for, as OpenAI does.
std::string AnswerFormat::chunk(const std::string& choice_fields, const Usage* usage) const {
  std::string out = chunk_head_ + choice_fields + "]";
  if (usage != nullptr) {
    out += ",\"usage\":" + to_text(usage_json(*usage));
  } else if (request_.params.output.include_usage) {
    out += ",\"usage\":null";
  }
  return out + "}";
}

std::string AnswerFormat::role_chunk(std::uint32_t choice, const Usage& usage) const {
  const OutputOptions& output = request_.params.output;
  std::string fields = fmt::format(
      R"({{"index":{},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}})",
      choice);
  std::string out = chunk(fields, output.continuous_usage ? &usage : nullptr);
  if (output.return_token_ids) {
    out.insert(out.size() - 1, ",\"prompt_token_ids\":" + to_text(Json(prompt_ids(choice))));
  }
  return out;
}

std::string AnswerFormat::delta_chunk(std::uint32_t choice, const ChoiceDelta& delta, bool first,
                                      const Usage& usage) const {
  const OutputOptions& output = request_.params.output;
  const std::string text = to_text(Json(delta.text));
  std::string fields = fmt::format(R"({{"index":{},{}:{})", choice,
                                   request_.chat ? R"("delta":{"content")" : R"("text")", text);
  if (request_.chat) fields += "}";
  fields += ",\"logprobs\":";
  fields += output.logprobs < 0 ? "null" : to_text(logprobs(delta.logprobs, output.logprobs));
  fields += ",\"finish_reason\":null";
  if (output.return_token_ids) {
    fields += ",\"token_ids\":" + to_text(Json(delta.token_ids));
    if (first && !request_.chat) {
      fields += ",\"prompt_token_ids\":" + to_text(Json(prompt_ids(choice)));
    }
  }
  return chunk(fields + "}", output.continuous_usage ? &usage : nullptr);
}

std::string AnswerFormat::finish_chunk(std::uint32_t choice, const ChoiceDelta& delta,
                                       const Usage& usage) const {
  Json out;
  out["index"] = choice;
  if (request_.chat) {
    out["delta"] = Json::object();
  } else {
    out["text"] = "";
  }
  out["logprobs"] = nullptr;
  out["finish_reason"] = delta.finish_reason;
  add_stop_reason(delta, out);
  return chunk(to_text(out), request_.params.output.continuous_usage ? &usage : nullptr);
}

std::string AnswerFormat::usage_chunk(const Usage& usage) const { return chunk("", &usage); }

Json AnswerFormat::logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top) const {
  return request_.chat ? chat_logprobs(entries, top, tokenizer_)
                       : completion_logprobs(entries, top, tokenizer_);
}

Json AnswerFormat::prompt_logprobs(const std::vector<LogprobEntry>& entries) const {
  return vllm_prompt_logprobs(entries, request_.params.output.prompt_logprobs, tokenizer_);
}

std::string AnswerFormat::whole(const std::vector<FinishedChoice>& choices,
                                const std::vector<std::vector<LogprobEntry>>& prompt_entries,
                                const Usage& usage) const {
  const OutputOptions& output = request_.params.output;
  Json body;
  body["id"] = id_;
  body["object"] = request_.chat ? "chat.completion" : "text_completion";
  body["created"] = created_;
  body["model"] = model_;
  body["system_fingerprint"] = fingerprint_;
  body["choices"] = Json::array();
  for (std::uint32_t i = 0; i < choices.size(); ++i) {
    const FinishedChoice& choice = choices[i];
    Json out;
    out["index"] = i;
    if (request_.chat) {
      out["message"] = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
    } else {
      out["text"] = choice.text;
    }
    out["logprobs"] =
        output.logprobs < 0 ? Json(nullptr) : logprobs(choice.logprobs, output.logprobs);
    out["finish_reason"] = choice.finish_reason;
    add_stop_reason(choice, out);
    if (output.return_token_ids) {
      out["token_ids"] = choice.token_ids;
      if (!request_.chat) out["prompt_token_ids"] = prompt_ids(i);
    }
    if (output.prompt_logprobs >= 0 && !request_.chat) {
      out["prompt_logprobs"] = prompt_logprobs(prompt_entries[i / request_.params.n]);
    }
    body["choices"].push_back(std::move(out));
  }
  body["usage"] = usage_json(usage);
  if (request_.chat && output.return_token_ids) body["prompt_token_ids"] = prompt_ids(0);
  if (request_.chat && output.prompt_logprobs >= 0) {
    body["prompt_logprobs"] = prompt_logprobs(prompt_entries[0]);
  }
  return to_text(body);
}

}  // namespace millrace::net
