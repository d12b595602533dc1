// Answers in OpenAI's shapes, whole and in chunks.
#pragma once

#include <ctime>
#include <string>
#include <vector>

#include "net/openai_choice.h"
#include "net/openai_prepare.h"
#include "net/openai_types.h"
#include "net/text/tokenizer.h"

namespace millrace::net {

// What a finished choice of a whole answer holds: the sum of its deltas.
struct FinishedChoice {
  std::string text;
  std::vector<LogprobEntry> logprobs;
  std::vector<std::int32_t> token_ids;
  std::string finish_reason;
  std::variant<std::monostate, std::string, std::int32_t> stop_reason;
};

// Writes the answer to one request. Chunks are JSON texts without SSE framing.
class AnswerFormat {
 public:
  AnswerFormat(const PreparedRequest& request, const text::Tokenizer& tokenizer, std::string model,
               std::string fingerprint);

  const std::string& id() const { return id_; }

  // Chat only: the first chunk of a choice, with the role and, when asked for, the prompt's ids.
  std::string role_chunk(std::uint32_t choice, const Usage& usage) const;
  // Text, log-probabilities and ids of a delta; its end is a chunk of its own.
  std::string delta_chunk(std::uint32_t choice, const ChoiceDelta& delta, bool first,
                          const Usage& usage) const;
  std::string finish_chunk(std::uint32_t choice, const ChoiceDelta& delta,
                           const Usage& usage) const;
  std::string usage_chunk(const Usage& usage) const;

  // choices[p * n + i] is choice i of prompt p. `prompt_logprobs[p]` is used when asked for.
  std::string whole(const std::vector<FinishedChoice>& choices,
                    const std::vector<std::vector<LogprobEntry>>& prompt_logprobs,
                    const Usage& usage) const;

 private:
  std::string chunk(const std::string& choice_fields, const Usage* usage) const;
  Json logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top) const;
  Json prompt_logprobs(const std::vector<LogprobEntry>& entries) const;
  const std::vector<std::int32_t>& prompt_ids(std::uint32_t choice) const;

  const PreparedRequest& request_;
  const text::Tokenizer& tokenizer_;
  std::string id_;
  std::string model_;
  std::string fingerprint_;
  std::time_t created_;
  std::string chunk_head_;  // "{"id":...,"choices":[" of every chunk
};

Json usage_json(const Usage& usage);

// A token's text for log-probabilities. Bytes that are not UTF-8 by themselves are written as
// \xNN (with OpenAI's "bytes:" in front for the completions route).
std::string logprob_text(std::string_view piece, bool chat);

}  // namespace millrace::net
