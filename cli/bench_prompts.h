// Random prompts of a wanted length, the same for the same seed.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace millrace::cli {

struct PromptShape {
  std::uint64_t seed = 0;
  std::uint32_t tokens = 0;
  std::uint32_t prefix_tokens = 0;  // the first ones, the same for every index
  std::int32_t first_id = 0;        // ids from [first_id, last_id)
  std::int32_t last_id = 0;
};

// Ids of ordinary tokens: special ones come first in most vocabularies. vocab_size 0: not known.
std::pair<std::int32_t, std::int32_t> usual_token_range(std::uint32_t vocab_size);

// Prompt number `index` as token ids: exactly `tokens` of them.
std::vector<std::int32_t> random_ids(const PromptShape& shape, std::uint64_t index);

// Prompt number `index` as `words` common English words with spaces between; about one token each
// in a usual tokenizer. The first prefix_tokens words are the same for every index.
std::string random_words(const PromptShape& shape, std::uint64_t index, std::uint32_t words);

// Finds the number of words that makes a prompt `wanted` tokens long, given how many tokens the
// server counted for the last guess. Returns the next guess; 0 when `wanted` cannot be met because
// the tokens around the prompt (a chat template) are already more.
std::uint32_t next_word_count(std::uint32_t words, std::uint32_t counted, std::uint32_t wanted);

}  // namespace millrace::cli
