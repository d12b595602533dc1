// One choice of an answer while its tokens arrive: text, stop strings, log-probabilities.
//
// Streamed and whole answers are made from the same deltas, so they agree by construction. A
// token's log-probability entry is given out when the text of the token is, and entries of tokens
// that lie wholly behind a stop string's cut never are.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "coordinator/request.h"
#include "net/openai_types.h"
#include "net/text/detokenizer.h"
#include "net/text/stop_strings.h"

namespace millrace::net {

struct LogprobEntry {
  TokenLogprob token;
  std::vector<TokenLogprob> top;
  std::size_t text_offset = 0;  // in code points, from the start of the choice's text
  bool known = true;            // false: the first token of a prompt, which has none
};

// What became certain with one token.
struct ChoiceDelta {
  std::string text;
  std::vector<LogprobEntry> logprobs;
  std::vector<std::int32_t> token_ids;  // all tokens since the last delta, stop tokens too
  std::string finish_reason;            // "stop" or "length"; empty while it goes on
  // What stopped it, when the client asked for that: a stop string or one of stop_token_ids.
  std::variant<std::monostate, std::string, std::int32_t> stop_reason;
  bool cancel = false;  // finished by a stop string: the engine does not know it yet
};

class ChoiceText {
 public:
  // `params` and `stops` outlive the object. `text_offset`: code points of an echoed prompt.
  ChoiceText(const text::Tokenizer& tokenizer, const GenerationParams& params,
             const text::StopStrings& stops, std::size_t text_offset);

  // Takes the next token or the end. Not to be called once finished().
  ChoiceDelta push(const TokenEvent& event);

  bool finished() const { return finished_; }
  std::uint32_t tokens() const { return tokens_; }  // generated so far, stop tokens too

 private:
  void take_text(const std::string& text, bool searched, ChoiceDelta& delta);
  void release(const std::string& text, ChoiceDelta& delta);
  void finish(const TokenEvent& event, ChoiceDelta& delta);

  const text::Tokenizer& tokenizer_;
  const GenerationParams& params_;
  const text::StopStrings& stops_;
  text::Detokenizer detokenizer_;
  text::StopMatcher matcher_;
  bool finished_ = false;
  std::uint32_t tokens_ = 0;
  std::size_t decoded_;   // code points that came out of the detokenizer
  std::size_t released_;  // of those, given out
  std::deque<LogprobEntry> waiting_;
};

// Entries for the prompt's own tokens, with their places in the echoed text. `hidden_prefix`
// leading tokens have no text there.
std::vector<LogprobEntry> prompt_entries(const std::vector<std::int32_t>& prompt,
                                         const PromptLogprobsEvent& event,
                                         const text::Tokenizer& tokenizer,
                                         std::size_t hidden_prefix);

}  // namespace millrace::net
