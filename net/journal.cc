#include "net/journal.h"

#include <utility>

#include "config/check.h"

namespace millrace::net {

void Journal::open(SequenceRequest request) {
  CHECK(request.prompt_tokens > 0 && request.prompt_tokens == request.tokens.size(),
        "id={} prompt_tokens={} tokens={}", request.id, request.prompt_tokens,
        request.tokens.size());
  const RequestId id = request.id;
  const bool fresh = entries_.try_emplace(id, Entry{std::move(request), {}, 0, false}).second;
  CHECK(fresh, "id={} is already in the journal", id);
}

void Journal::assign(RequestId id, const Assignment& at) {
  const auto it = entries_.find(id);
  CHECK(it != entries_.end(), "id={}", id);
  it->second.at = at;
  ++it->second.submissions;
}

void Journal::unassign(RequestId id) {
  const auto it = entries_.find(id);
  CHECK(it != entries_.end(), "id={}", id);
  it->second.at = {};
}

void Journal::close(RequestId id) { entries_.erase(id); }

TokenVerdict Journal::judge(const Entry& entry, const TokenEvent& event) const {
  const std::uint32_t next = entry.next_index();
  if (!event.has_token) {
    // The cell gave up or was told to: it may not know the index. A clean end must fit exactly, or
    // tokens are missing.
    const bool clean = event.finish == FinishReason::kStop || event.finish == FinishReason::kLength;
    return !clean || event.index == next ? TokenVerdict::kDeliver : TokenVerdict::kBroken;
  }
  if (event.finish == FinishReason::kCancelled || event.finish == FinishReason::kRefused) {
    return TokenVerdict::kBroken;  // never with a token
  }
  if (event.index < next) return TokenVerdict::kDuplicate;
  if (event.index > next || next >= entry.request.max_new_tokens) return TokenVerdict::kBroken;
  return TokenVerdict::kDeliver;
}

TokenVerdict Journal::on_token(const Assignment& from, const TokenEvent& event) {
  const auto it = entries_.find(event.id);
  if (it == entries_.end()) return count(TokenVerdict::kUnknown);
  Entry& entry = it->second;
  if (entry.at != from) return count(TokenVerdict::kStale);
  const TokenVerdict verdict = judge(entry, event);
  if (verdict == TokenVerdict::kDeliver && event.has_token) {
    entry.request.tokens.push_back(event.token.token);
  }
  return count(verdict);
}

TokenVerdict Journal::on_prompt_logprobs(const Assignment& from, const PromptLogprobsEvent& event) {
  const auto it = entries_.find(event.id);
  if (it == entries_.end()) return count(TokenVerdict::kUnknown);
  Entry& entry = it->second;
  if (entry.at != from) return count(TokenVerdict::kStale);
  if (entry.prompt_logprobs_delivered) return count(TokenVerdict::kDuplicate);
  const bool fits = entry.request.sampling.prompt_logprobs && entry.next_index() == 0 &&
                    event.targets.size() + 1 == entry.request.prompt_tokens;
  if (!fits) return count(TokenVerdict::kBroken);
  entry.prompt_logprobs_delivered = true;
  return count(TokenVerdict::kDeliver);
}

TokenVerdict Journal::count(TokenVerdict verdict) {
  switch (verdict) {
    case TokenVerdict::kDeliver:
      ++stats_.delivered;
      break;
    case TokenVerdict::kDuplicate:
      ++stats_.duplicates;
      break;
    case TokenVerdict::kStale:
      ++stats_.stale;
      break;
    case TokenVerdict::kUnknown:
      ++stats_.unknown;
      break;
    case TokenVerdict::kBroken:
      ++stats_.broken;
      break;
  }
  return verdict;
}

Result<SequenceRequest> Journal::resubmit_request(RequestId id) const {
  const Entry* entry = find(id);
  if (entry == nullptr) {
    return Error{ErrorCode::kNotFound, "id",
                 fmt::format("request {} is not in flight; only such can be replayed", id)};
  }
  SequenceRequest request = entry->request;
  if (entry->prompt_logprobs_delivered || entry->next_index() > 0) {
    request.sampling.prompt_logprobs = false;
  }
  return request;
}

const Journal::Entry* Journal::find(RequestId id) const {
  const auto it = entries_.find(id);
  return it == entries_.end() ? nullptr : &it->second;
}

}  // namespace millrace::net
