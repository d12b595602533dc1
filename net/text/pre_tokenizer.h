// Cuts text into pieces by the tokenizer's regular expression.
//
// Tokenizer files are written for Oniguruma, we match with PCRE2 (UTF, UCP, JIT). Where the two
// read the same pattern differently, compile() translates: \s and \S become the White_Space
// property (PCRE2's \s also takes U+180E), and \p{L} and \p{N} get the characters that PCRE2's
// older Unicode lacks (unicode_additions.h). What has no exact translation is refused by name.
// Checked over all code points with LFM2's pattern: no difference to `tokenizers` 0.23 is left.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "config/result.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;

namespace millrace::text {

class PreTokenizer {
 public:
  static Result<PreTokenizer> compile(const std::string& pattern);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Matching state of one encode call; the compiled pattern itself is shared by all threads.
  class Cursor {
   public:
    // `text` must be well-formed UTF-8 and outlive the cursor. Look-ahead never leaves `text`.
    Cursor(const PreTokenizer& pre, std::string_view text);
    ~Cursor();
    Cursor(const Cursor&) = delete;
    Cursor& operator=(const Cursor&) = delete;

    // The next piece in order, without gaps; empty at the end. Error: match limit reached.
    Result<std::string_view> next();

   private:
    Result<bool> match(std::size_t from);  // sets begin_ and end_

    const PreTokenizer& pre_;
    std::string_view text_;
    pcre2_real_match_data_8* data_;
    std::size_t at_ = 0;
    std::size_t begin_ = 0, end_ = 0;  // a match that waits behind the gap just returned
    bool pending_ = false;
  };

 private:
  PreTokenizer() = default;
  pcre2_real_code_8* code_ = nullptr;
  pcre2_real_match_context_8* context_ = nullptr;
};

// The translation step by itself, for tests.
Result<std::string> translate_oniguruma(std::string_view pattern);

}  // namespace millrace::text
