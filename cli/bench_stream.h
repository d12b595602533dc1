// The client's side of a stream: server-sent events, and what a chunk of OpenAI's API says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "config/result.h"

namespace millrace::cli {

// Cuts bytes into events by the rules of the HTML standard, section 9.2.6: lines end in LF, CR or
// CRLF, `data` fields of one event are joined by LF, comments and other fields are skipped. Bytes
// may be cut anywhere. An event of more than 4 MiB is refused.
class SseParser {
 public:
  // Calls on_event(data) for each event that `bytes` completes. kResourceExhausted when one is too
  // large; the parser is then of no further use.
  Result<void> feed(std::string_view bytes, const std::function<void(std::string_view)>& on_event);

 private:
  Result<void> line(const std::function<void(std::string_view)>& on_event);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool after_cr_ = false;
};

// What is known so far of one streamed answer. How many tokens a chunk carries is, in this order:
// the length of choices[0].token_ids; the number of log-probabilities; the growth of
// usage.completion_tokens (continuous_usage_stats); otherwise 1 for a chunk with text. The final
// usage, when the server sends one, overrules the sum.
class StreamProgress {
 public:
  struct Chunk {
    std::uint32_t tokens = 0;
    bool has_choice = false;
    bool done = false;  // data: [DONE]
  };

  // kInvalidArgument for data that is not a chunk, kUnavailable for an error event; the message is
  // the server's.
  Result<Chunk> chunk(std::string_view data);

  bool finished() const { return finished_; }  // a finish_reason or [DONE] has come
  std::uint32_t output_tokens() const { return usage_output_ > 0 ? usage_output_ : counted_; }
  std::uint32_t prompt_tokens() const { return usage_prompt_; }  // 0: the server did not say

 private:
  std::uint32_t counted_ = 0;
  std::uint32_t usage_output_ = 0;
  std::uint32_t usage_prompt_ = 0;
  bool finished_ = false;
};

}  // namespace millrace::cli
