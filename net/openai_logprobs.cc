#include "net/openai_logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "net/openai_format.h"
#include "net/text/utf8.h"

namespace millrace::net {
namespace {

double writable(float logprob) {
  return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0;
}

std::size_t shown(const LogprobEntry& entry, std::int32_t top) {
  return std::min(entry.top.size(), static_cast<std::size_t>(std::max(top, 0)));
}

Json chat_token(const TokenLogprob& token, const text::Tokenizer& tokenizer) {
  const std::string_view piece = tokenizer.id_to_piece(token.token);
  Json out;
  out["token"] = logprob_text(piece, true);
  out["logprob"] = writable(token.logprob);
  Json bytes = Json::array();
  for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
  out["bytes"] = std::move(bytes);
  return out;
}

}  // namespace

std::string logprob_text(std::string_view piece, bool chat) {
  if (!text::find_invalid_utf8(piece)) return std::string(piece);
  std::string out = chat ? "" : "bytes:";
  for (const char c : piece) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return out;
}

Json chat_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                   const text::Tokenizer& tokenizer) {
  Json content = Json::array();
  for (const LogprobEntry& entry : entries) {
    Json token = chat_token(entry.token, tokenizer);
    Json alternatives = Json::array();
    for (std::size_t i = 0; i < shown(entry, top); ++i) {
      alternatives.push_back(chat_token(entry.top[i], tokenizer));
    }
    token["top_logprobs"] = std::move(alternatives);
    content.push_back(std::move(token));
  }
  Json out;
  out["content"] = std::move(content);
  out["refusal"] = nullptr;
  return out;
}

Json completion_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                         const text::Tokenizer& tokenizer) {
  Json offsets = Json::array();
  Json values = Json::array();
  Json tokens = Json::array();
  Json tops = Json::array();
  for (const LogprobEntry& entry : entries) {
    const std::string name = logprob_text(tokenizer.id_to_piece(entry.token.token), false);
    offsets.push_back(entry.text_offset);
    tokens.push_back(name);
    values.push_back(entry.known ? Json(writable(entry.token.logprob)) : Json(nullptr));
    if (!entry.known) {
      tops.push_back(nullptr);
      continue;
    }
    Json alternatives = Json::object();
    for (std::size_t i = 0; i < shown(entry, top); ++i) {
      // Of two tokens with one text the likelier keeps the key.
      alternatives.emplace(logprob_text(tokenizer.id_to_piece(entry.top[i].token), false),
                           writable(entry.top[i].logprob));
    }
    alternatives.emplace(name, writable(entry.token.logprob));
    tops.push_back(std::move(alternatives));
  }
  Json out;
  out["text_offset"] = std::move(offsets);
  out["token_logprobs"] = std::move(values);
  out["tokens"] = std::move(tokens);
  out["top_logprobs"] = std::move(tops);
  return out;
}

Json vllm_prompt_logprobs(const std::vector<LogprobEntry>& entries, std::int32_t top,
                          const text::Tokenizer& tokenizer) {
  Json list = Json::array();
  for (const LogprobEntry& entry : entries) {
    if (!entry.known) {
      list.push_back(nullptr);
      continue;
    }
    Json ranked = Json::object();
    const auto put = [&](const TokenLogprob& token, const Json& rank) {
      const std::string key = std::to_string(token.token);
      if (ranked.contains(key)) return;
      Json value;
      value["logprob"] = writable(token.logprob);
      value["rank"] = rank;
      value["decoded_token"] = logprob_text(tokenizer.id_to_piece(token.token), true);
      ranked[key] = std::move(value);
    };
    for (std::size_t i = 0; i < shown(entry, top); ++i) put(entry.top[i], i + 1);
    put(entry.token, nullptr);
    list.push_back(std::move(ranked));
  }
  return list;
}

}  // namespace millrace::net
