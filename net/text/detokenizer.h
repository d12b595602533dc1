// Token ids to text while they arrive. One object per generated choice; not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "net/text/tokenizer.h"
#include "net/text/utf8.h"

namespace millrace::text {

// The concatenation of what push() and flush() return equals Tokenizer::decode of all ids; no piece
// ends inside a UTF-8 character. The tokenizer must outlive the object.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // Text that is now certain; empty while a character is incomplete.
  std::string push(std::int32_t id) {
    std::string out;
    if (!skip_special_ || !tokenizer_->is_special(id)) {
      repair_.push(tokenizer_->id_to_piece(id), out);
    }
    return out;
  }

  // The end of the tokens: an incomplete character becomes U+FFFD.
  std::string flush() {
    std::string out;
    repair_.flush(out);
    return out;
  }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8Repair repair_;
};

}  // namespace millrace::text
