#include "net/text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "net/text/byte_alphabet.h"

namespace millrace::text {
namespace {

// Up to this many symbols a scan for the best pair beats a heap; measured on English text the two
// cross between 30 and 60.
constexpr std::size_t kShortPiece = 32;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

bool occurs_in_utf8(unsigned byte) { return byte != 0xC0 && byte != 0xC1 && byte <= 0xF4; }

}  // namespace

// Pieces are a few bytes long, so this is a multiply-and-fold over 8-byte words.
std::size_t Bpe::BytesHash::operator()(std::string_view s) const {
  std::uint64_t h = s.size() * 0x9E3779B97F4A7C15ull;
  const auto mix = [&h](std::uint64_t word) {
    h = (h ^ word) * 0xFF51AFD7ED558CCDull;
    h ^= h >> 32;
  };
  while (s.size() >= 8) {
    std::uint64_t word;
    std::memcpy(&word, s.data(), 8);
    mix(word);
    s.remove_prefix(8);
  }
  std::uint64_t tail = 0;
  std::memcpy(&tail, s.data(), s.size());
  mix(tail);
  return h;
}

Result<Bpe> Bpe::create(const std::vector<std::string>& tokens, const std::vector<bool>& ordinary,
                        const std::vector<std::pair<std::string, std::string>>& merges,
                        bool ignore_merges) {
  Bpe bpe;
  boost::unordered_flat_map<std::string, std::int32_t, BytesHash, std::equal_to<>> ids;
  ids.reserve(tokens.size());
  // Ordinary tokens first: where an added token stands for the same bytes, merges mean the
  // ordinary.
  for (const bool pass : {true, false}) {
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      if (ordinary[id] != pass || tokens[id].empty()) continue;
      ids.emplace(tokens[id], static_cast<std::int32_t>(id));
    }
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto it = ids.find(std::string(1, static_cast<char>(byte)));
    if (it == ids.end() && occurs_in_utf8(byte)) {
      return invalid("model.vocab", fmt::format("byte 0x{:02x} has no token; a byte-level "
                                                "vocabulary needs one for each",
                                                byte));
    }
    bpe.byte_ids_[byte] = it == ids.end() ? -1 : it->second;
  }
  bpe.ranks_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(left + right);
    if (l == ids.end() || r == ids.end() || both == ids.end()) {
      return invalid(fmt::format("model.merges[{}]", rank),
                     fmt::format("\"{}\" + \"{}\": both sides and their join must be tokens",
                                 bytes_to_token(left), bytes_to_token(right)));
    }
    // A pair listed twice keeps its last rank, as building a map from the list does.
    bpe.ranks_[pair_key(l->second, r->second)] = static_cast<std::uint32_t>(rank);
    bpe.merged_.push_back(both->second);
  }
  Scratch scratch;
  std::vector<std::int32_t> out;
  for (const auto& [bytes, id] : ids) {
    out.clear();
    bpe.merge_piece(bytes, scratch, out);
    const bool reachable = out.size() == 1 && out[0] == id;
    bpe.unreachable_ += !reachable && ordinary[id];
    if (!reachable && !(ignore_merges && ordinary[id])) continue;
    bpe.whole_.emplace(bytes, id);
    bpe.longest_whole_ = std::max(bpe.longest_whole_, bytes.size());
  }
  return bpe;
}

std::uint32_t Bpe::merge_rank(std::int32_t left, std::int32_t right) const {
  const auto it = ranks_.find(pair_key(left, right));
  return it == ranks_.end() ? kNoMerge : it->second;
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (piece.size() <= longest_whole_) {
    if (const auto it = whole_.find(piece); it != whole_.end()) {
      out.push_back(it->second);
      return;
    }
  }
  merge_piece(piece, scratch, out);
}

void Bpe::merge_piece(std::string_view piece, Scratch& scratch,
                      std::vector<std::int32_t>& out) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  for (char c : piece) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    const auto n = static_cast<std::int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, n - 1, n + 1, kNoMerge});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
    symbols[i].rank = merge_rank(symbols[i].id, symbols[i + 1].id);
  }
  symbols.size() <= kShortPiece ? merge_short(scratch, out) : merge_long(scratch, out);
}

void Bpe::merge_short(Scratch& scratch, std::vector<std::int32_t>& out) const {
  auto& symbols = scratch.symbols;
  const auto rank = [&](std::size_t i) {
    return i + 1 < symbols.size() ? merge_rank(symbols[i].id, symbols[i + 1].id) : kNoMerge;
  };
  for (;;) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < symbols.size(); ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoMerge) break;
    symbols[best].id = merged_[symbols[best].rank];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    symbols[best].rank = rank(best);
    if (best > 0) symbols[best - 1].rank = rank(best - 1);
  }
  for (const auto& symbol : symbols) out.push_back(symbol.id);
}

void Bpe::merge_long(Scratch& scratch, std::vector<std::int32_t>& out) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const auto push = [&](std::int32_t left) {
    heap.push_back(std::uint64_t{symbols[left].rank} << 32 | static_cast<std::uint32_t>(left));
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    if (symbols[i].rank != kNoMerge) push(static_cast<std::int32_t>(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto refresh = [&](std::int32_t left) {
    auto& symbol = symbols[left];
    symbol.rank = symbol.next < 0 ? kNoMerge : merge_rank(symbol.id, symbols[symbol.next].id);
    if (symbol.rank == kNoMerge) return;
    push(left);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const auto rank = static_cast<std::uint32_t>(heap.front() >> 32);
    const auto at = static_cast<std::int32_t>(heap.front() & 0xFFFFFFFF);
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    auto& left = symbols[at];
    if (left.rank != rank) continue;  // the pair has changed since
    auto& right = symbols[left.next];
    left.id = merged_[rank];
    left.next = right.next;
    right.rank = kNoMerge;
    if (left.next >= 0) symbols[left.next].previous = at;
    refresh(at);
    if (left.previous >= 0) refresh(left.previous);
  }
  for (std::int32_t i = 0; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace millrace::text
