// Finds added tokens in text by exact match.
//
// Source: `tokenizers`' AddedVocabulary: leftmost match, the longest at a position, no overlaps;
// all tokens that are not `normalized` in a first pass, the others in a second pass over what is
// left.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "net/text/tokenizer.h"

namespace millrace::text {

// A stretch of the text: an added token (id >= 0), or text still to be tokenized (id -1).
struct TextSpan {
  std::string_view text;
  std::int32_t id = -1;
};

class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  // Without parse_special, special tokens in the text stay text.
  std::vector<TextSpan> split(std::string_view text, bool parse_special) const;

  // Every position at which some token begins, also inside another one.
  std::vector<std::size_t> occurrences(std::string_view text) const;

 private:
  struct Entry {
    std::int32_t id;
    bool special, lstrip, rstrip;
  };
  struct Node {
    std::int32_t entry = -1;
    std::vector<std::pair<unsigned char, std::int32_t>> next;  // few children: 500 tokens in all
  };
  struct Trie {
    std::vector<Node> nodes{1};
    std::array<bool, 256> starts{};
  };

  void add(Trie& trie, const AddedToken& token);
  // The longest token of `trie` at `at`; entry -1 when there is none.
  std::int32_t longest_at(const Trie& trie, std::string_view text, std::size_t at,
                          std::size_t* length) const;
  void split_pass(const Trie& trie, std::string_view text, bool parse_special,
                  std::vector<TextSpan>& out) const;

  std::vector<Entry> entries_;
  Trie exact_, normalized_;
};

}  // namespace millrace::text
