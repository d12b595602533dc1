// tokenizer.json and tokenizer_config.json of a Hugging Face folder.
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "net/text/file_text.h"
#include "net/text/tokenizer.h"

namespace millrace::text {
namespace {

using Json = nlohmann::json;

// Tokens of the largest public vocabularies number 260,000; a larger id is a broken file.
constexpr std::int64_t kMaxVocab = 4'000'000;

// Before the names of fields that are not in tokenizer.json.
constexpr const char* kConfig = "tokenizer_config.json: ";

Error unsupported(std::string field, std::string what) {
  return {ErrorCode::kUnsupported, std::move(field), what + " is not supported by this tokenizer"};
}

const Json& get(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : std::string();
}

// A member that must be absent, null, false, zero or empty for the tokens to be what we produce.
bool is_off(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_number() && value.get<double>() == 0) ||
         (value.is_string() && value.get<std::string>().empty());
}

std::optional<Error> parse_vocab(const Json& model, TokenizerData& data) {
  const Json& vocab = get(model, "vocab");
  if (!vocab.is_object() || vocab.empty()) {
    return invalid("model.vocab", "must be an object of tokens and their ids");
  }
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() >= kMaxVocab) {
      return invalid("model.vocab",
                     fmt::format("the id of \"{}\" must be 0..{}", token, kMaxVocab - 1));
    }
    const auto index = static_cast<std::size_t>(id.get<std::int64_t>());
    if (index >= data.tokens.size()) data.tokens.resize(index + 1);
    if (token.empty() || !data.tokens[index].empty()) {
      return invalid("model.vocab", fmt::format("id {} has two tokens or an empty one", index));
    }
    data.tokens[index] = token;
  }
  return std::nullopt;
}

std::optional<Error> parse_merges(const Json& model, TokenizerData& data) {
  const Json& merges = get(model, "merges");
  if (!merges.is_array()) return invalid("model.merges", "must be an array");
  data.merges.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const Json& merge = merges[i];
    if (merge.is_string()) {
      const std::string pair = merge.get<std::string>();
      const auto space = pair.find(' ');
      if (space != std::string::npos && pair.find(' ', space + 1) == std::string::npos) {
        data.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      data.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    return invalid(fmt::format("model.merges[{}]", i), "must be \"left right\" or [left, right]");
  }
  return std::nullopt;
}

std::optional<Error> parse_model(const Json& model, TokenizerData& data) {
  if (const std::string type = text_of(get(model, "type")); type != "BPE") {
    return unsupported("model.type", fmt::format("\"{}\" (only BPE is)", type));
  }
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                          "fuse_unk", "byte_fallback"}) {
    if (!is_off(get(model, key))) {
      return unsupported(fmt::format("model.{}", key), get(model, key).dump());
    }
  }
  data.ignore_merges = get(model, "ignore_merges").is_boolean() && get(model, "ignore_merges");
  if (auto error = parse_vocab(model, data)) return error;
  return parse_merges(model, data);
}

std::optional<Error> parse_added_token(const Json& token, std::int64_t id, std::string field,
                                       TokenizerData& data) {
  const std::string content = text_of(get(token, "content"));
  if (content.empty() || id < 0 || id >= kMaxVocab) {
    return invalid(field, "needs an id and a content");
  }
  if (!is_off(get(token, "single_word"))) return unsupported(field + ".single_word", "true");
  const auto index = static_cast<std::size_t>(id);
  if (index >= data.tokens.size()) data.tokens.resize(index + 1);
  if (!data.tokens[index].empty() && data.tokens[index] != content) {
    return invalid(field, fmt::format("id {} is \"{}\" in the vocabulary but \"{}\" here", id,
                                      data.tokens[index], content));
  }
  for (const AddedToken& known : data.added) {
    if (known.content != content) continue;
    if (known.id == id) return std::nullopt;
    return invalid(field, fmt::format("\"{}\" has the ids {} and {}", content, known.id, id));
  }
  data.tokens[index] = content;
  data.added.push_back({static_cast<std::int32_t>(id), content, !is_off(get(token, "special")),
                        !is_off(get(token, "lstrip")), !is_off(get(token, "rstrip")),
                        !is_off(get(token, "normalized"))});
  return std::nullopt;
}

std::optional<Error> parse_added(const Json& root, const Json& config, TokenizerData& data) {
  const Json& added = get(root, "added_tokens");
  if (!added.is_null() && !added.is_array()) return invalid("added_tokens", "must be an array");
  for (std::size_t i = 0; i < added.size(); ++i) {
    const Json& id = get(added[i], "id");
    if (auto error =
            parse_added_token(added[i], id.is_number_integer() ? id.get<std::int64_t>() : -1,
                              fmt::format("added_tokens[{}]", i), data)) {
      return error;
    }
  }
  // tokenizer_config.json repeats them, and in some folders has more.
  const Json& decoder = get(config, "added_tokens_decoder");
  if (!decoder.is_object()) return std::nullopt;
  for (const auto& [key, token] : decoder.items()) {
    const bool digits =
        !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (auto error =
            parse_added_token(token, digits ? std::stoll(key) : -1,
                              fmt::format("{}added_tokens_decoder.{}", kConfig, key), data)) {
      return error;
    }
  }
  return std::nullopt;
}

std::optional<Error> parse_split(const Json& step, TokenizerData& data) {
  const std::string field = "pre_tokenizer.Split";
  const Json& pattern = get(step, "pattern");
  const std::string regex = text_of(get(pattern, "Regex"));
  if (regex.empty()) return unsupported(field + ".pattern", pattern.dump());
  if (text_of(get(step, "behavior")) != "Isolated") {
    return unsupported(field + ".behavior", get(step, "behavior").dump());
  }
  if (!is_off(get(step, "invert"))) return unsupported(field + ".invert", "true");
  if (!data.split_regex.empty()) return unsupported(field, "a second Split");
  data.split_regex = regex;
  return std::nullopt;
}

// Exactly a Split and then a ByteLevel that only maps bytes: the shape of LFM2's file.
std::optional<Error> parse_pre_tokenizer(const Json& pre, TokenizerData& data) {
  const bool sequence = text_of(get(pre, "type")) == "Sequence";
  const Json steps = sequence ? get(pre, "pretokenizers") : Json::array({pre});
  bool byte_level = false;
  for (const Json& step : steps) {
    const std::string type = text_of(get(step, "type"));
    if (byte_level) return unsupported("pre_tokenizer", type + " after ByteLevel");
    if (type == "Split") {
      if (auto error = parse_split(step, data)) return error;
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (!is_off(get(step, "add_prefix_space"))) {
        return unsupported("pre_tokenizer.ByteLevel.add_prefix_space", "true");
      }
      const Json& use_regex = get(step, "use_regex");
      if (!use_regex.is_boolean() || use_regex.get<bool>()) {
        return unsupported("pre_tokenizer.ByteLevel.use_regex", "true (also the default)");
      }
    } else {
      return unsupported("pre_tokenizer", fmt::format("\"{}\"", type));
    }
  }
  if (!byte_level || data.split_regex.empty()) {
    return unsupported("pre_tokenizer", "anything but a Split followed by ByteLevel");
  }
  return std::nullopt;
}

std::optional<Error> parse_template(const Json& processor, TokenizerData& data) {
  bool after_text = false;
  for (const Json& item : get(processor, "single")) {
    if (const Json& special = get(item, "SpecialToken"); special.is_object()) {
      const Json& entry =
          get(get(processor, "special_tokens"), text_of(get(special, "id")).c_str());
      const Json& ids = get(entry, "ids");
      if (!ids.is_array() || ids.empty()) {
        return invalid("post_processor.special_tokens",
                       fmt::format("{} has no ids", get(special, "id").dump()));
      }
      for (const Json& id : ids) {
        if (!id.is_number_integer()) return invalid("post_processor.special_tokens", "bad id");
        (after_text ? data.suffix : data.prefix).push_back(id.get<std::int32_t>());
      }
    } else if (text_of(get(get(item, "Sequence"), "id")) == "A" && !after_text) {
      after_text = true;
    } else {
      return unsupported("post_processor.single", item.dump());
    }
  }
  if (!after_text) return invalid("post_processor.single", "the text itself (A) is missing");
  return std::nullopt;
}

std::optional<Error> parse_post_processor(const Json& processor, TokenizerData& data) {
  if (processor.is_null()) return std::nullopt;
  const std::string type = text_of(get(processor, "type"));
  if (type == "Sequence") {
    for (const Json& step : get(processor, "processors")) {
      if (auto error = parse_post_processor(step, data)) return error;
    }
    return std::nullopt;
  }
  if (type == "ByteLevel") return std::nullopt;  // moves offsets, not tokens
  if (type == "TemplateProcessing" && data.prefix.empty() && data.suffix.empty()) {
    return parse_template(processor, data);
  }
  return unsupported("post_processor", fmt::format("\"{}\"", type));
}

std::optional<Error> parse_decoder(const Json& decoder) {
  const std::string type = text_of(get(decoder, "type"));
  if (type == "ByteLevel") return std::nullopt;
  const Json& steps = get(decoder, "decoders");
  if (type == "Sequence" && steps.size() == 1 && text_of(get(steps[0], "type")) == "ByteLevel") {
    return std::nullopt;
  }
  return unsupported("decoder", type.empty() ? "a missing decoder" : fmt::format("\"{}\"", type));
}

// A named token of tokenizer_config.json, a string or an object with a content.
std::optional<Error> named_token(const Json& config, const char* key, const TokenizerData& data,
                                 std::optional<std::int32_t>& id) {
  const Json& value = get(config, key);
  const std::string content = value.is_object() ? text_of(get(value, "content")) : text_of(value);
  if (content.empty()) return std::nullopt;
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    if (data.tokens[i] == content) {
      id = static_cast<std::int32_t>(i);
      return std::nullopt;
    }
  }
  return invalid(std::string(kConfig) + key,
                 fmt::format("\"{}\" is not a token of tokenizer.json", content));
}

std::optional<Error> parse_config(const Json& config, TokenizerData& data) {
  if (auto error = named_token(config, "bos_token", data, data.bos)) return error;
  if (auto error = named_token(config, "eos_token", data, data.eos)) return error;
  if (auto error = named_token(config, "pad_token", data, data.pad)) return error;
  // Either flag, when it is there, replaces what tokenizer.json's post-processor says; so do
  // transformers (TokenizersBackend.update_post_processor).
  const Json& add_bos = get(config, "add_bos_token");
  const Json& add_eos = get(config, "add_eos_token");
  if (!add_bos.is_boolean() && !add_eos.is_boolean()) return std::nullopt;
  data.prefix.clear();
  data.suffix.clear();
  if (add_bos.is_boolean() && add_bos.get<bool>()) {
    if (!data.bos)
      return invalid(std::string(kConfig) + "add_bos_token", "true, but there is no bos_token");
    data.prefix = {*data.bos};
  }
  if (add_eos.is_boolean() && add_eos.get<bool>()) {
    if (!data.eos)
      return invalid(std::string(kConfig) + "add_eos_token", "true, but there is no eos_token");
    data.suffix = {*data.eos};
  }
  return std::nullopt;
}

std::optional<Error> parse_all(const Json& root, const Json& config, TokenizerData& data) {
  if (!is_off(get(root, "normalizer"))) {
    return unsupported("normalizer", get(root, "normalizer").dump());
  }
  if (!is_off(get(root, "truncation"))) return unsupported("truncation", "a set value");
  if (!is_off(get(root, "padding"))) return unsupported("padding", "a set value");
  if (auto error = parse_model(get(root, "model"), data)) return error;
  if (auto error = parse_added(root, config, data)) return error;
  if (auto error = parse_pre_tokenizer(get(root, "pre_tokenizer"), data)) return error;
  if (auto error = parse_post_processor(get(root, "post_processor"), data)) return error;
  if (auto error = parse_decoder(get(root, "decoder"))) return error;
  return parse_config(config, data);
}

}  // namespace

Result<TokenizerData> parse_tokenizer_json(std::string_view tokenizer_json,
                                           std::string_view config_json) {
  const Json root = Json::parse(tokenizer_json, nullptr, false);
  if (!root.is_object()) return invalid("tokenizer.json", "is not a JSON object");
  Json config = Json::object();
  if (!config_json.empty()) config = Json::parse(config_json, nullptr, false);
  if (!config.is_object()) return invalid("tokenizer_config.json", "is not a JSON object");
  TokenizerData data;
  if (auto error = parse_all(root, config, data)) return *error;
  return data;
}

Result<Tokenizer> Tokenizer::load(const std::string& folder) {
  const std::filesystem::path base(folder);
  const auto with_file = [&](Error error) {
    const bool names_file = error.field.starts_with("tokenizer");
    const std::string path = names_file ? folder : (base / "tokenizer.json").string();
    error.field = path + (names_file ? "/" : error.field.empty() ? "" : ": ") + error.field;
    return error;
  };
  const Result<std::string> tokenizer_json = read_text_file(base / "tokenizer.json");
  if (!tokenizer_json) return tokenizer_json.error();
  std::string config_json;
  if (std::filesystem::exists(base / "tokenizer_config.json")) {
    Result<std::string> text = read_text_file(base / "tokenizer_config.json");
    if (!text) return text.error();
    config_json = std::move(*text);
  }
  Result<TokenizerData> data = parse_tokenizer_json(*tokenizer_json, config_json);
  if (!data) return with_file(data.error());
  Result<Tokenizer> tokenizer = create(std::move(*data));
  if (!tokenizer) return with_file(tokenizer.error());
  return tokenizer;
}

}  // namespace millrace::text
