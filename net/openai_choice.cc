#include "net/openai_choice.h"

#include <algorithm>

#include "config/check.h"
#include "net/text/utf8.h"

namespace millrace::net {

ChoiceText::ChoiceText(const text::Tokenizer& tokenizer, const GenerationParams& params,
                       const text::StopStrings& stops, std::size_t text_offset)
    : tokenizer_(tokenizer),
      params_(params),
      stops_(stops),
      detokenizer_(tokenizer, params.output.skip_special_tokens),
      matcher_(stops, params.output.include_stop),
      decoded_(text_offset),
      released_(text_offset) {}

void ChoiceText::release(const std::string& text, ChoiceDelta& delta) {
  delta.text += text;
  released_ += text::count_code_points(text);
}

// `searched`: stop strings count. Before min_tokens they do not.
void ChoiceText::take_text(const std::string& text, bool searched, ChoiceDelta& delta) {
  decoded_ += text::count_code_points(text);
  if (!searched || stops_.empty()) {
    release(text, delta);
    return;
  }
  const text::StopResult result = matcher_.push(text);
  release(result.text, delta);
  if (result.stopped && delta.finish_reason.empty()) {
    delta.finish_reason = "stop";
    delta.stop_reason = stops_.strings()[result.stop_index];
    delta.cancel = true;
  }
}

ChoiceDelta ChoiceText::push(const TokenEvent& event) {
  CHECK(!finished_, "token {} after the end", event.index);
  ChoiceDelta delta;
  if (event.has_token) {
    ++tokens_;
    if (params_.output.return_token_ids) delta.token_ids.push_back(event.token.token);
    if (!event.stop_token || params_.output.include_stop) {
      if (params_.output.logprobs >= 0) {
        waiting_.push_back({event.token, event.top, decoded_, true});
      }
      take_text(detokenizer_.push(event.token.token), event.index >= params_.min_tokens, delta);
    }
  }
  if (delta.finish_reason.empty() && event.finish != FinishReason::kNone) finish(event, delta);
  finished_ = !delta.finish_reason.empty();
  // A cut leaves text that was decoded and is never released; otherwise all is out when they meet.
  while (!waiting_.empty() && (released_ == decoded_ || waiting_.front().text_offset < released_)) {
    delta.logprobs.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return delta;
}

void ChoiceText::finish(const TokenEvent& event, ChoiceDelta& delta) {
  take_text(detokenizer_.flush(), true, delta);
  if (!delta.finish_reason.empty()) {
    delta.cancel = false;
    return;
  }
  release(matcher_.flush(), delta);
  delta.finish_reason = event.finish == FinishReason::kLength ? "length" : "stop";
  const auto& asked = params_.stop_token_ids;
  if (event.stop_token && std::find(asked.begin(), asked.end(), event.token.token) != asked.end()) {
    delta.stop_reason = event.token.token;
  }
}

std::vector<LogprobEntry> prompt_entries(const std::vector<std::int32_t>& prompt,
                                         const PromptLogprobsEvent& event,
                                         const text::Tokenizer& tokenizer,
                                         std::size_t hidden_prefix) {
  std::vector<LogprobEntry> entries;
  text::Detokenizer detokenizer(tokenizer, false);
  std::size_t offset = 0;
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    LogprobEntry entry;
    entry.token.token = prompt[i];
    entry.text_offset = offset;
    entry.known = i > 0 && i - 1 < event.targets.size();
    if (entry.known) {
      entry.token = event.targets[i - 1];
      if (i - 1 < event.top.size()) entry.top = event.top[i - 1];
    }
    if (i >= hidden_prefix) offset += text::count_code_points(detokenizer.push(prompt[i]));
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace millrace::net
