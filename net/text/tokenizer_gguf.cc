#include "net/text/tokenizer_gguf.h"

#include <fmt/format.h>

namespace millrace::text {
namespace {

// tokenizer.ggml.token_type, as in llama.h.
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr std::string_view kPrefix = "tokenizer.ggml.";

std::string key(std::string_view name) { return std::string(kPrefix).append(name); }

std::optional<Error> check_kind(const GgufFile& file) {
  const auto model = file.get_string(key("model"));
  if (!model) return model.error();
  if (*model != "gpt2") {
    return Error{ErrorCode::kUnsupported, key("model"),
                 fmt::format("\"{}\" is not supported, only \"gpt2\" (byte-level BPE)", *model)};
  }
  const auto pre = file.get_string(key("pre"));
  if (!pre) return pre.error();
  if (*pre != "lfm2") {
    return Error{ErrorCode::kUnsupported, key("pre"),
                 fmt::format("\"{}\" is not supported, only \"lfm2\"", *pre)};
  }
  return std::nullopt;
}

std::optional<Error> read_tokens(const GgufFile& file, TokenizerData& data) {
  const auto tokens = file.get_string_array(key("tokens"));
  if (!tokens) return tokens.error();
  const auto types = file.get_int_array(key("token_type"));
  if (!types) return types.error();
  if (types->size() != tokens->size()) {
    return invalid(key("token_type"),
                   fmt::format("has {} entries for {} tokens", types->size(), tokens->size()));
  }
  for (std::size_t i = 0; i < tokens->size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const std::string content((*tokens)[i]);
    switch ((*types)[i]) {
      case kNormal:
        data.tokens.push_back(content);
        break;
      case kControl:
      case kUserDefined:
        // User-defined tokens are added tokens that were not special in the original tokenizer.
        data.tokens.push_back(content);
        data.added.push_back(
            {id, content, (*types)[i] == kControl, false, false, (*types)[i] == kUserDefined});
        break;
      case kUnused:  // filler up to the rows of the embedding
        data.tokens.emplace_back();
        break;
      default:
        return Error{ErrorCode::kUnsupported, fmt::format("{}[{}]", key("token_type"), i),
                     fmt::format("type {} is not supported", (*types)[i])};
    }
  }
  return std::nullopt;
}

std::optional<Error> read_merges(const GgufFile& file, TokenizerData& data) {
  const auto merges = file.get_string_array(key("merges"));
  if (!merges) return merges.error();
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    // From the second byte on: a token may itself begin with a space in old files.
    const auto space = merge.find(' ', 1);
    if (space == std::string_view::npos) {
      return invalid(fmt::format("{}[{}]", key("merges"), i), "must be \"left right\"");
    }
    data.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return std::nullopt;
}

std::optional<Error> read_id(const GgufFile& file, std::string_view name, const TokenizerData& data,
                             std::optional<std::int32_t>& id) {
  if (!file.has(key(name))) return std::nullopt;
  const auto value = file.get_int(key(name), 0, static_cast<std::int64_t>(data.tokens.size()) - 1);
  if (!value) return value.error();
  id = static_cast<std::int32_t>(*value);
  return std::nullopt;
}

Result<bool> read_flag(const GgufFile& file, std::string_view name, bool otherwise) {
  return file.has(key(name)) ? file.get_bool(key(name)) : Result<bool>(otherwise);
}

}  // namespace

Result<TokenizerData> tokenizer_data_from_gguf(const GgufFile& file) {
  TokenizerData data;
  if (auto error = check_kind(file)) return *error;
  if (auto error = read_tokens(file, data)) return *error;
  if (auto error = read_merges(file, data)) return *error;
  if (auto error = read_id(file, "bos_token_id", data, data.bos)) return *error;
  if (auto error = read_id(file, "eos_token_id", data, data.eos)) return *error;
  if (auto error = read_id(file, "padding_token_id", data, data.pad)) return *error;
  data.split_regex = kLfm2SplitRegex;
  data.ignore_merges = true;
  const Result<bool> add_bos = read_flag(file, "add_bos_token", true);
  if (!add_bos) return add_bos.error();
  const Result<bool> add_eos = read_flag(file, "add_eos_token", false);
  if (!add_eos) return add_eos.error();
  if (*add_bos && data.bos) data.prefix = {*data.bos};
  if (*add_eos && data.eos) data.suffix = {*data.eos};
  return data;
}

}  // namespace millrace::text
