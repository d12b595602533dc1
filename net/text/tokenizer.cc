#include "net/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "net/text/added_tokens.h"
#include "net/text/bpe.h"
#include "net/text/byte_alphabet.h"
#include "net/text/pre_tokenizer.h"
#include "net/text/utf8.h"

namespace millrace::text {

const char* const kLfm2SplitRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Tokenizer::Impl {
  std::vector<std::string> tokens;  // as in the file
  std::vector<std::string> pieces;  // raw bytes
  std::vector<bool> special;
  std::unordered_map<std::string_view, std::int32_t> ids;  // of tokens
  std::vector<std::int32_t> prefix, suffix;
  std::optional<std::int32_t> bos, eos, pad;
  AddedTokenMatcher added;
  PreTokenizer pre;
  Bpe bpe;

  bool has(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < tokens.size();
  }
};

namespace {

std::optional<Error> check_data(const TokenizerData& data) {
  const auto size = static_cast<std::int32_t>(data.tokens.size());
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    if (find_invalid_utf8(data.tokens[i])) {
      return invalid(fmt::format("tokens[{}]", i), "not well-formed UTF-8");
    }
  }
  for (const AddedToken& token : data.added) {
    const bool known = token.id >= 0 && token.id < size && !token.content.empty() &&
                       data.tokens[token.id] == token.content;
    if (!known) {
      return invalid("added_tokens", fmt::format("id {} (\"{}\") disagrees with the vocabulary",
                                                 token.id, token.content));
    }
  }
  const auto check_id = [&](std::int32_t id, const char* what) -> std::optional<Error> {
    if (id >= 0 && id < size && !data.tokens[id].empty()) return std::nullopt;
    return invalid(what, fmt::format("id {} is not in the vocabulary of {} tokens", id, size));
  };
  for (std::int32_t id : data.prefix) {
    if (auto error = check_id(id, "post_processor")) return error;
  }
  for (std::int32_t id : data.suffix) {
    if (auto error = check_id(id, "post_processor")) return error;
  }
  if (data.bos) {
    if (auto error = check_id(*data.bos, "bos_token")) return error;
  }
  if (data.eos) {
    if (auto error = check_id(*data.eos, "eos_token")) return error;
  }
  if (data.pad) {
    if (auto error = check_id(*data.pad, "pad_token")) return error;
  }
  return std::nullopt;
}

std::vector<std::pair<std::string, std::string>> merge_bytes(const TokenizerData& data) {
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(data.merges.size());
  for (const auto& [left, right] : data.merges) {
    merges.emplace_back(token_to_bytes(left), token_to_bytes(right));
  }
  return merges;
}

}  // namespace

Result<Tokenizer> Tokenizer::create(TokenizerData data) {
  if (auto error = check_data(data)) return *error;
  for (const auto& [left, right] : data.merges) {
    if (find_invalid_utf8(left) || find_invalid_utf8(right)) {
      return invalid("model.merges", "a merge is not well-formed UTF-8");
    }
  }
  auto pre = PreTokenizer::compile(data.split_regex);
  if (!pre) return pre.error();
  std::vector<std::string> pieces;
  pieces.reserve(data.tokens.size());
  for (const std::string& token : data.tokens) pieces.push_back(token_to_bytes(token));
  std::vector<bool> special(data.tokens.size());
  std::vector<bool> ordinary(data.tokens.size(), true);
  for (const AddedToken& token : data.added) {
    special[token.id] = token.special;
    ordinary[token.id] = !token.special;
  }
  auto bpe = Bpe::create(pieces, ordinary, merge_bytes(data), data.ignore_merges);
  if (!bpe) return bpe.error();
  std::unique_ptr<Impl> impl(new Impl{std::move(data.tokens),
                                      std::move(pieces),
                                      std::move(special),
                                      {},
                                      std::move(data.prefix),
                                      std::move(data.suffix),
                                      data.bos,
                                      data.eos,
                                      data.pad,
                                      AddedTokenMatcher(data.added),
                                      std::move(*pre),
                                      std::move(*bpe)});
  for (std::size_t id = 0; id < impl->tokens.size(); ++id) {
    if (!impl->tokens[id].empty()) {
      impl->ids.emplace(impl->tokens[id], static_cast<std::int32_t>(id));
    }
  }
  return Tokenizer(std::move(impl));
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text,
                                                    EncodeOptions options) const {
  if (text.size() > kMaxEncodeBytes) {
    return Error{
        ErrorCode::kResourceExhausted, "",
        fmt::format("the text has {} bytes, the limit is {}", text.size(), kMaxEncodeBytes)};
  }
  if (const auto at = find_invalid_utf8(text)) {
    return invalid("", fmt::format("the text is not well-formed UTF-8 at byte {}", *at));
  }
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  Bpe::Scratch scratch;
  if (options.add_special) ids.insert(ids.end(), impl_->prefix.begin(), impl_->prefix.end());
  for (const TextSpan& span : impl_->added.split(text, options.parse_special)) {
    if (span.id >= 0) {
      ids.push_back(span.id);
      continue;
    }
    PreTokenizer::Cursor cursor(impl_->pre, span.text);
    for (;;) {
      const Result<std::string_view> piece = cursor.next();
      if (!piece) return piece.error();
      if (piece->empty()) break;
      impl_->bpe.encode(*piece, scratch, ids);
    }
  }
  if (options.add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string out;
  Utf8Repair repair;
  for (std::int32_t id : ids) {
    if (!impl_->has(id) || (skip_special && impl_->special[id])) continue;
    repair.push(impl_->pieces[id], out);
  }
  repair.flush(out);
  return out;
}

std::string_view Tokenizer::id_to_piece(std::int32_t id) const {
  return impl_->has(id) ? std::string_view(impl_->pieces[id]) : std::string_view();
}

std::string_view Tokenizer::id_to_token(std::int32_t id) const {
  return impl_->has(id) ? std::string_view(impl_->tokens[id]) : std::string_view();
}

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto it = impl_->ids.find(token);
  if (it == impl_->ids.end()) return std::nullopt;
  return it->second;
}

bool Tokenizer::is_special(std::int32_t id) const { return impl_->has(id) && impl_->special[id]; }

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(impl_->tokens.size());
}

std::vector<std::string> Tokenizer::special_tokens() const {
  std::vector<std::string> tokens;
  for (std::size_t id = 0; id < impl_->tokens.size(); ++id) {
    if (impl_->special[id]) tokens.push_back(impl_->tokens[id]);
  }
  return tokens;
}

std::optional<std::int32_t> Tokenizer::bos() const { return impl_->bos; }
std::optional<std::int32_t> Tokenizer::eos() const { return impl_->eos; }
std::optional<std::int32_t> Tokenizer::pad() const { return impl_->pad; }

bool Tokenizer::adds_bos() const {
  return impl_->bos && !impl_->prefix.empty() && impl_->prefix.front() == *impl_->bos;
}

}  // namespace millrace::text
