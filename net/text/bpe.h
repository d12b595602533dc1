// Byte-pair merging of one piece of text.
//
// Starting from one symbol per byte, the adjacent pair with the best (lowest) merge rank is joined,
// the leftmost first among equals, until no pair has a rank. Source: Sennrich et al., ACL 2016, in
// the form of `tokenizers`' Word::merge_all.
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/result.h"

namespace millrace::text {

class Bpe {
 public:
  // Working memory of one thread's encode calls, reused between pieces.
  struct Scratch {
    struct Symbol {
      std::int32_t id;
      std::int32_t previous, next;  // -1 at the ends
      std::uint32_t rank;           // of the merge with `next`; kNoMerge also when merged away
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> heap;  // rank << 32 | index of the left symbol
  };

  // tokens[id] are raw bytes, empty for none. `bytes_of_merge` are the raw bytes of both sides,
  // best rank first. `ordinary[id]` is false for special tokens, which ignore_merges never emits.
  // Refused: a merge whose sides or result are not tokens, a byte of UTF-8 that has no token.
  static Result<Bpe> create(const std::vector<std::string>& tokens,
                            const std::vector<bool>& ordinary,
                            const std::vector<std::pair<std::string, std::string>>& merges,
                            bool ignore_merges);

  // Appends the ids of `piece` (raw bytes) to `out`. O(n log n) in the length of the piece.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

  // Tokens that the merges can never produce from their own bytes; only ignore_merges emits them.
  std::size_t unreachable_tokens() const { return unreachable_; }

 private:
  static constexpr std::uint32_t kNoMerge = 0xFFFFFFFF;

  std::uint32_t merge_rank(std::int32_t left, std::int32_t right) const;
  void merge_piece(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;
  void merge_short(Scratch& scratch, std::vector<std::int32_t>& out) const;
  void merge_long(Scratch& scratch, std::vector<std::int32_t>& out) const;

  struct BytesHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const;
  };

  std::array<std::int32_t, 256> byte_ids_{};
  boost::unordered_flat_map<std::uint64_t, std::uint32_t> ranks_;  // key: left id << 32 | right id
  std::vector<std::int32_t> merged_;                               // by rank: the joined token
  // Pieces that are answered by one token at once: with ignore_merges every ordinary token, without
  // it those that merging their own bytes gives back.
  boost::unordered_flat_map<std::string, std::int32_t, BytesHash, std::equal_to<>> whole_;
  std::size_t longest_whole_ = 0;
  std::size_t unreachable_ = 0;
};

}  // namespace millrace::text
