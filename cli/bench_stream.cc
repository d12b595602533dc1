#include "cli/bench_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace millrace::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxEventBytes = 4 << 20;

const json kNull;

// The member `name` of an object, or null. Servers send null for what they leave out.
const json& member(const json& object, const char* name) {
  if (!object.is_object()) return kNull;
  const auto it = object.find(name);
  return it == object.end() ? kNull : *it;
}

std::uint32_t count_of(const json& value) {
  return value.is_number_unsigned() ? static_cast<std::uint32_t>(std::min<std::uint64_t>(
                                          value.get<std::uint64_t>(), UINT32_MAX))
                                    : 0;
}

bool has_text(const json& choice) {
  const json& delta = member(choice, "delta");
  for (const json* text : {&member(choice, "text"), &member(delta, "content"),
                           &member(delta, "reasoning_content"), &member(delta, "reasoning")}) {
    if (text->is_string() && !text->get_ref<const std::string&>().empty()) return true;
  }
  const json& calls = member(delta, "tool_calls");
  return calls.is_array() && !calls.empty();
}

std::string error_message(const json& error) {
  const json& message = member(error, "message");
  return message.is_string() ? message.get<std::string>() : error.dump();
}

}  // namespace

Result<void> SseParser::feed(std::string_view bytes,
                             const std::function<void(std::string_view)>& on_event) {
  for (const char c : bytes) {
    const bool second_half_of_crlf = after_cr_ && c == '\n';
    after_cr_ = c == '\r';
    if (second_half_of_crlf) continue;
    if (c == '\n' || c == '\r') {
      if (auto ended = line(on_event); !ended) return ended.error();
      continue;
    }
    line_ += c;
    if (line_.size() + data_.size() > kMaxEventBytes) {
      return Error{ErrorCode::kResourceExhausted, "", "an event of more than 4 MiB"};
    }
  }
  return {};
}

Result<void> SseParser::line(const std::function<void(std::string_view)>& on_event) {
  if (line_.empty()) {
    if (has_data_) on_event(data_);
    data_.clear();
    has_data_ = false;
    return {};
  }
  constexpr std::string_view kData = "data:";
  if (line_ == "data" || line_.starts_with(kData)) {
    std::string_view value = std::string_view(line_).substr(std::min(line_.size(), kData.size()));
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (has_data_) data_ += '\n';
    if (data_.size() + value.size() > kMaxEventBytes) {
      return Error{ErrorCode::kResourceExhausted, "", "an event of more than 4 MiB"};
    }
    data_ += value;
    has_data_ = true;
  }
  line_.clear();
  return {};
}

Result<StreamProgress::Chunk> StreamProgress::chunk(std::string_view data) {
  if (data == "[DONE]") {
    finished_ = true;
    return Chunk{.done = true};
  }
  const json body = json::parse(data, nullptr, false);
  if (!body.is_object()) {
    return invalid("", fmt::format("a chunk that is not a JSON object: {:.80}", data));
  }
  if (const json& error = member(body, "error"); !error.is_null()) {
    return Error{ErrorCode::kUnavailable, "", error_message(error)};
  }
  Chunk chunk;
  const json& choices = member(body, "choices");
  const json& choice = choices.is_array() && !choices.empty() ? choices.front() : kNull;
  chunk.has_choice = choice.is_object();
  if (member(choice, "finish_reason").is_string()) finished_ = true;

  const json& usage = member(body, "usage");
  const std::uint32_t total = count_of(member(usage, "completion_tokens"));
  if (const json& ids = member(choice, "token_ids"); ids.is_array() && !ids.empty()) {
    chunk.tokens = static_cast<std::uint32_t>(ids.size());
  } else if (const json& logprobs = member(choice, "logprobs"); logprobs.is_object()) {
    const json& tokens = member(logprobs, "tokens");
    const json& content = member(logprobs, "content");
    chunk.tokens = static_cast<std::uint32_t>(tokens.is_array()    ? tokens.size()
                                              : content.is_array() ? content.size()
                                                                   : 0);
  } else if (chunk.has_choice && total > counted_) {
    chunk.tokens = total - counted_;
  } else if (has_text(choice)) {
    chunk.tokens = 1;
  }
  counted_ += chunk.tokens;
  usage_output_ = std::max(usage_output_, total);
  usage_prompt_ = std::max(usage_prompt_, count_of(member(usage, "prompt_tokens")));
  return chunk;
}

}  // namespace millrace::cli
