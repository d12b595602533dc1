// Byte-level BPE tokenizer: text to token ids and back.
//
// The road of a text: special and added tokens are cut out by exact match, what lies between is cut
// into pieces by the model's regular expression, and the bytes of each piece are merged by rank.
// Source: the Hugging Face `tokenizers` library (models/bpe, pre_tokenizers/{split,byte_level},
// added_vocabulary), whose ids are reproduced exactly; tests/golden/text holds its answers.
//
// Immutable after load(), so one object serves all threads. A feature of a tokenizer file that
// would change tokens and is not implemented is refused by name when loading.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/result.h"

namespace millrace::text {

// Added tokens are matched in the text before anything else. `special` ones are control tokens:
// hidden by decode(skip_special) and not matched when parse_special is off.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = true;
  bool lstrip = false;      // the match also swallows white space on its left
  bool rstrip = false;      // the match also swallows white space on its right
  bool normalized = false;  // matched in a second pass, after all that are not
};

// What a tokenizer is made of, whichever file it came from.
struct TokenizerData {
  // Index is the id. Ordinary tokens are written in the GPT-2 byte alphabet (" the" is
  // "\u0120the"), added tokens as they look. An empty string is an id without a token.
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, std::string>> merges;  // best rank first
  std::vector<AddedToken> added;
  std::string split_regex;     // isolated matches; the text between two matches is a piece as well
  bool ignore_merges = false;  // a piece that is a token as a whole is not merged
  std::vector<std::int32_t> prefix;  // ids that add_special puts before the text (BOS)
  std::vector<std::int32_t> suffix;  // ids that add_special puts after the text
  std::optional<std::int32_t> bos, eos, pad;
};

struct EncodeOptions {
  // Adds the model's own prefix and suffix (BOS). For plain completions; a rendered chat template
  // has written its BOS itself and must be encoded without, or BOS appears twice.
  bool add_special = false;
  // Recognises special tokens that are spelled out in the text. Added tokens that are not special
  // are always recognised, as in `tokenizers`.
  bool parse_special = true;
};

inline constexpr std::size_t kMaxEncodeBytes = std::size_t{256} << 20;

class Tokenizer {
 public:
  // From a Hugging Face folder with tokenizer.json and, when present, tokenizer_config.json.
  // Errors: field is the file and the path inside it.
  static Result<Tokenizer> load(const std::string& folder);
  static Result<Tokenizer> create(TokenizerData data);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Text that is not well-formed UTF-8 is refused (the message names the byte offset), as is text
  // of more than kMaxEncodeBytes and text on which the regular expression exceeds its match limit.
  Result<std::vector<std::int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes of all tokens, then malformed UTF-8 replaced by U+FFFD. Ids without a token, negative
  // ids among them, contribute nothing.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const;

  // The raw bytes of one token, possibly half a character; empty for an id without a token. The
  // view lives as long as the tokenizer.
  std::string_view id_to_piece(std::int32_t id) const;

  // The token as the tokenizer file writes it (GPT-2 byte alphabet), empty when there is none.
  std::string_view id_to_token(std::int32_t id) const;
  std::optional<std::int32_t> token_to_id(std::string_view token) const;

  bool is_special(std::int32_t id) const;
  std::int32_t vocab_size() const;  // one more than the largest id; the model may have more rows
  std::vector<std::string> special_tokens() const;

  std::optional<std::int32_t> bos() const;
  std::optional<std::int32_t> eos() const;
  std::optional<std::int32_t> pad() const;
  bool adds_bos() const;  // add_special puts BOS first

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// The parts of load(), for tests and for callers that have the texts at hand. `config_json` may be
// empty. Errors as load().
Result<TokenizerData> parse_tokenizer_json(std::string_view tokenizer_json,
                                           std::string_view config_json);

// The split of LFM2 (all sizes, LFM2.5 too), which is Llama 3's: contractions, letters with one
// leading sign, up to three digits, signs with line ends, line ends, white space.
extern const char* const kLfm2SplitRegex;

}  // namespace millrace::text
