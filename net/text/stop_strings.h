// Stop strings over streamed text.
//
// Of several matches the one that ends first wins, and among those that end together the longest;
// so the result does not depend on how the text was cut into pieces. Text is held back only while
// it is the beginning of some stop string (an Aho-Corasick automaton: Aho and Corasick, CACM 18(6),
// 1975).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/result.h"

namespace millrace::text {

// Compiled once per request, shared by its choices; immutable.
class StopStrings {
 public:
  // No strings is fine and never matches. Refused: an empty string, one that is not UTF-8, more
  // than 16 strings, one longer than 256 bytes (so an automaton stays under 4.2 MB). Errors: field
  // "stop" or "stop[i]".
  static Result<StopStrings> create(std::vector<std::string> strings);

  bool empty() const { return strings_.empty(); }
  const std::vector<std::string>& strings() const { return strings_; }

 private:
  friend class StopMatcher;
  struct Node {
    std::array<std::int32_t, 256> next;
    std::uint32_t depth = 0;
    std::int32_t match = -1;  // index of the longest stop string that ends here
  };

  std::vector<std::string> strings_;
  std::vector<Node> nodes_;
};

struct StopResult {
  std::string text;  // to send now; with a match, everything up to the cut
  bool stopped = false;
  std::size_t stop_index = 0;  // which string, when stopped
};

// State of one choice. Text goes in as whole UTF-8 characters and comes out so.
class StopMatcher {
 public:
  // `stops` must outlive the matcher. include_stop: the stop string itself belongs to the text.
  StopMatcher(const StopStrings& stops, bool include_stop)
      : stops_(&stops), include_stop_(include_stop) {}

  // After a match every further push returns nothing and `stopped`.
  StopResult push(std::string_view text);

  // Generation ended for another reason: returns the text held back.
  std::string flush();

  bool stopped() const { return stopped_; }
  // Bytes of text released so far; after a match this is the cut position in the whole text.
  std::size_t released() const { return released_; }

 private:
  const StopStrings* stops_;
  bool include_stop_;
  bool stopped_ = false;
  std::size_t stop_index_ = 0;
  std::size_t released_ = 0;
  std::int32_t node_ = 0;
  std::string held_;
};

}  // namespace millrace::text
