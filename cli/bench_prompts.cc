#include "cli/bench_prompts.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "kernels/philox.h"

namespace millrace::cli {
namespace {

// Short, frequent words: one token each, with the space before, in most byte-pair vocabularies.
constexpr std::array<std::string_view, 64> kWords = {
    "time",     "year",  "people", "way",     "day",    "man",      "thing",  "woman",
    "life",     "child", "world",  "school",  "state",  "family",   "group",  "country",
    "hand",     "part",  "place",  "case",    "week",   "company",  "system", "program",
    "question", "work",  "number", "night",   "point",  "home",     "water",  "room",
    "mother",   "area",  "money",  "story",   "fact",   "month",    "lot",    "right",
    "study",    "book",  "eye",    "job",     "word",   "business", "issue",  "side",
    "kind",     "head",  "house",  "service", "friend", "father",   "power",  "hour",
    "game",     "line",  "end",    "member",  "law",    "car",      "city",   "name"};

// The random bits of token `i` of prompt `index`; the prefix is that of a prompt of its own.
std::uint64_t bits(const PromptShape& shape, std::uint64_t index, std::uint32_t i) {
  const bool shared = i < shape.prefix_tokens;
  return kernels::draw_bits(shape.seed, i, shared ? ~std::uint64_t{0} : index);
}

}  // namespace

std::pair<std::int32_t, std::int32_t> usual_token_range(std::uint32_t vocab_size) {
  constexpr std::uint32_t kFirst = 1'000, kEnd = 30'000;
  if (vocab_size == 0) return {kFirst, kEnd};
  return {std::min(kFirst, vocab_size / 4), std::min(kEnd, vocab_size)};
}

std::vector<std::int32_t> random_ids(const PromptShape& shape, std::uint64_t index) {
  std::vector<std::int32_t> ids(shape.tokens);
  const auto range = static_cast<std::uint64_t>(shape.last_id - shape.first_id);
  for (std::uint32_t i = 0; i < shape.tokens; ++i) {
    ids[i] = shape.first_id + static_cast<std::int32_t>(bits(shape, index, i) % range);
  }
  return ids;
}

std::string random_words(const PromptShape& shape, std::uint64_t index, std::uint32_t words) {
  std::string text;
  for (std::uint32_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    text += kWords[bits(shape, index, i) % kWords.size()];
  }
  return text;
}

std::uint32_t next_word_count(std::uint32_t words, std::uint32_t counted, std::uint32_t wanted) {
  const std::int64_t next = std::int64_t{words} + std::int64_t{wanted} - std::int64_t{counted};
  return next > 0 ? static_cast<std::uint32_t>(next) : 0;
}

}  // namespace millrace::cli
