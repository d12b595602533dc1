// Which cell was last given a prompt that begins like another: there its KV may still be.
//
// A hint and no more. Beginnings are known by hashes at every kStride tokens, and the least
// recently used are forgotten, so it may be wrong or know nothing; a cell finds exactly what it has
// by itself.
//
// Not thread-safe: one strand owns it.
#pragma once

#include <boost/multi_index/hashed_index.hpp>
#include <boost/multi_index/member.hpp>
#include <boost/multi_index/sequenced_index.hpp>
#include <boost/multi_index_container.hpp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace millrace::net {

class PrefixAffinity {
 public:
  static constexpr std::size_t kStride = 128;  // tokens

  // Hashes of the first kStride, 2 kStride, ... tokens.
  using Trail = std::vector<std::uint64_t>;
  static Trail trail(std::span<const std::int32_t> tokens);

  // Remembers `capacity` beginnings.
  explicit PrefixAffinity(std::size_t capacity = std::size_t{1} << 18) : capacity_(capacity) {}

  void note(const Trail& trail, const std::string& cell_id);

  // The cell that was given the longest beginning of this trail.
  const std::string* find(const Trail& trail) const;

 private:
  struct Entry {
    std::uint64_t hash;
    std::uint32_t cell;  // into cells_
  };
  using Entries = boost::multi_index_container<
      Entry,
      boost::multi_index::indexed_by<boost::multi_index::sequenced<>,
                                     boost::multi_index::hashed_unique<boost::multi_index::member<
                                         Entry, std::uint64_t, &Entry::hash>>>>;

  static constexpr std::size_t kMaxNames = 1024;  // when there were more, all is forgotten

  std::size_t capacity_;
  Entries entries_;  // the latest first
  std::vector<std::string> cells_;
};

}  // namespace millrace::net
