#include "net/text/stop_strings.h"

#include <fmt/format.h>

#include <deque>

#include "net/text/utf8.h"

namespace millrace::text {
namespace {

constexpr std::size_t kMaxStrings = 16;
constexpr std::size_t kMaxBytes = 256;

}  // namespace

Result<StopStrings> StopStrings::create(std::vector<std::string> strings) {
  if (strings.size() > kMaxStrings) {
    return invalid("stop",
                   fmt::format("at most {} stop strings, got {}", kMaxStrings, strings.size()));
  }
  StopStrings stops;
  Node empty;
  empty.next.fill(-1);
  stops.nodes_.push_back(empty);
  auto& nodes = stops.nodes_;
  for (std::size_t i = 0; i < strings.size(); ++i) {
    const std::string& s = strings[i];
    if (s.empty() || s.size() > kMaxBytes || find_invalid_utf8(s)) {
      return invalid(fmt::format("stop[{}]", i),
                     fmt::format("must be 1 to {} bytes of UTF-8", kMaxBytes));
    }
    std::int32_t node = 0;
    for (char c : s) {
      const auto byte = static_cast<unsigned char>(c);
      if (nodes[node].next[byte] < 0) {
        nodes[node].next[byte] = static_cast<std::int32_t>(nodes.size());
        empty.depth = nodes[node].depth + 1;
        nodes.push_back(empty);
      }
      node = nodes[node].next[byte];
    }
    if (nodes[node].match < 0) nodes[node].match = static_cast<std::int32_t>(i);
  }
  // Breadth first: the failure state of a node is shallower than the node and already complete, so
  // missing edges can be filled with its edges and a missing match inherited from it.
  std::vector<std::int32_t> failure(nodes.size(), 0);
  std::deque<std::int32_t> queue{0};
  while (!queue.empty()) {
    const std::int32_t node = queue.front();
    queue.pop_front();
    if (nodes[node].match < 0) nodes[node].match = nodes[failure[node]].match;
    for (int byte = 0; byte < 256; ++byte) {
      std::int32_t& next = nodes[node].next[byte];
      const std::int32_t fallback = node == 0 ? 0 : nodes[failure[node]].next[byte];
      if (next < 0) {
        next = fallback;
      } else {
        failure[next] = fallback;
        queue.push_back(next);
      }
    }
  }
  stops.strings_ = std::move(strings);
  return stops;
}

StopResult StopMatcher::push(std::string_view text) {
  StopResult result;
  if (!stopped_ && stops_->empty()) {
    result.text = text;
    released_ += text.size();
    return result;
  }
  for (std::size_t i = 0; i < text.size() && !stopped_; ++i) {
    node_ = stops_->nodes_[node_].next[static_cast<unsigned char>(text[i])];
    held_.push_back(text[i]);
    const auto& node = stops_->nodes_[node_];
    if (node.match < 0) continue;
    stopped_ = true;
    stop_index_ = static_cast<std::size_t>(node.match);
    if (!include_stop_) held_.resize(held_.size() - stops_->strings_[stop_index_].size());
  }
  const std::size_t keep = stopped_ ? 0 : stops_->nodes_[node_].depth;
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, result.text.size());
  released_ += result.text.size();
  result.stopped = stopped_;
  result.stop_index = stop_index_;
  return result;
}

std::string StopMatcher::flush() {
  std::string text = std::move(held_);
  held_.clear();
  released_ += text.size();
  return text;
}

}  // namespace millrace::text
