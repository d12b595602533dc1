#include "net/text/added_tokens.h"

#include <algorithm>

#include "net/text/utf8.h"

namespace millrace::text {
namespace {

std::size_t white_space_before(std::string_view text, std::size_t at, std::size_t floor) {
  while (at > floor) {
    std::size_t start = at - 1, length = 0;
    while (start > floor && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_unicode_white_space(decode_code_point(text, start, &length))) break;
    at = start;
  }
  return at;
}

std::size_t white_space_after(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    std::size_t length = 0;
    if (!is_unicode_white_space(decode_code_point(text, at, &length))) break;
    at += length;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) add(token.normalized ? normalized_ : exact_, token);
}

void AddedTokenMatcher::add(Trie& trie, const AddedToken& token) {
  std::int32_t node = 0;
  for (char ch : token.content) {
    const auto byte = static_cast<unsigned char>(ch);
    auto& next = trie.nodes[node].next;
    const auto it = std::find_if(next.begin(), next.end(),
                                 [&](const auto& edge) { return edge.first == byte; });
    if (it != next.end()) {
      node = it->second;
      continue;
    }
    const auto child = static_cast<std::int32_t>(trie.nodes.size());
    next.emplace_back(byte, child);
    trie.nodes.emplace_back();
    node = child;
  }
  trie.starts[static_cast<unsigned char>(token.content[0])] = true;
  trie.nodes[node].entry = static_cast<std::int32_t>(entries_.size());
  entries_.push_back({token.id, token.special, token.lstrip, token.rstrip});
}

std::int32_t AddedTokenMatcher::longest_at(const Trie& trie, std::string_view text, std::size_t at,
                                           std::size_t* length) const {
  std::int32_t node = 0, best = -1;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto& next = trie.nodes[node].next;
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto it = std::find_if(next.begin(), next.end(),
                                 [&](const auto& edge) { return edge.first == byte; });
    if (it == next.end()) break;
    node = it->second;
    if (trie.nodes[node].entry >= 0) {
      best = trie.nodes[node].entry;
      *length = i + 1 - at;
    }
  }
  return best;
}

void AddedTokenMatcher::split_pass(const Trie& trie, std::string_view text, bool parse_special,
                                   std::vector<TextSpan>& out) const {
  std::size_t done = 0;  // everything before it is in `out`
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 0;
    const std::int32_t found = trie.starts[static_cast<unsigned char>(text[at])]
                                   ? longest_at(trie, text, at, &length)
                                   : -1;
    if (found < 0) {
      ++at;
      continue;
    }
    const Entry& entry = entries_[found];
    std::size_t begin = at, end = at + length;
    at = end;  // matches do not overlap, even one that is passed over
    if (entry.special && !parse_special) continue;
    if (entry.lstrip) begin = white_space_before(text, begin, done);
    if (entry.rstrip) end = white_space_after(text, end);
    if (begin > done) out.push_back({text.substr(done, begin - done), -1});
    out.push_back({text.substr(begin, end - begin), entry.id});
    done = end;
    at = end;
  }
  if (done < text.size()) out.push_back({text.substr(done), -1});
}

std::vector<TextSpan> AddedTokenMatcher::split(std::string_view text, bool parse_special) const {
  std::vector<TextSpan> spans;
  split_pass(exact_, text, parse_special, spans);
  if (normalized_.nodes.size() == 1) return spans;
  std::vector<TextSpan> out;
  for (const TextSpan& span : spans) {
    if (span.id >= 0) {
      out.push_back(span);
    } else {
      split_pass(normalized_, span.text, parse_special, out);
    }
  }
  return out;
}

std::vector<std::size_t> AddedTokenMatcher::occurrences(std::string_view text) const {
  std::vector<std::size_t> found;
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::size_t length = 0;
    for (const Trie* trie : {&exact_, &normalized_}) {
      if (!trie->starts[static_cast<unsigned char>(text[at])]) continue;
      if (longest_at(*trie, text, at, &length) < 0) continue;
      found.push_back(at);
      break;
    }
  }
  return found;
}

}  // namespace millrace::text
