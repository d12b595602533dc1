#include "cli/text_model.h"

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/random_text.h"
#include "config/gguf_file.h"
#include "config/random_model.h"
#include "net/text/tokenizer_gguf.h"

namespace millrace {

namespace {

std::string token_text(const text::Tokenizer& tokenizer, std::optional<std::int32_t> id) {
  return id ? std::string(tokenizer.id_to_token(*id)) : std::string();
}

// The same error with the file or folder that it is about, where it does not say so itself.
Error located(Error error, const std::string& path) {
  const bool says = error.field.starts_with(path) || error.message.starts_with(path);
  if (!says) error.field = path + ": " + error.field;
  return error;
}

Result<TextModel> with_template(text::Tokenizer tokenizer, Result<std::string> source,
                                const std::string& path) {
  if (!source) {
    if (source.error().code != ErrorCode::kNotFound) return located(source.error(), path);
    return TextModel{std::move(tokenizer), std::nullopt};
  }
  Result<text::ChatTemplate> chat = text::ChatTemplate::load(
      *source, token_text(tokenizer, tokenizer.bos()), token_text(tokenizer, tokenizer.eos()));
  if (!chat) return located(chat.error(), path);
  return TextModel{std::move(tokenizer), std::move(*chat)};
}

Result<TextModel> load_gguf(const std::string& path) {
  Result<GgufFile> file = GgufFile::open(path);
  if (!file) return file.error();
  Result<text::TokenizerData> data = text::tokenizer_data_from_gguf(*file);
  if (!data) return located(data.error(), path);
  Result<text::Tokenizer> tokenizer = text::Tokenizer::create(std::move(*data));
  if (!tokenizer) return located(tokenizer.error(), path);
  constexpr std::string_view kKey = "tokenizer.chat_template";
  if (!file->has(kKey)) return TextModel{std::move(*tokenizer), std::nullopt};
  Result<std::string_view> source = file->get_string(kKey);
  if (!source) return source.error();
  return with_template(std::move(*tokenizer), std::string(*source), path);
}

}  // namespace

Result<TextModel> load_text_model(const std::string& path) {
  if (is_random_model(path)) {
    Result<text::Tokenizer> made = random_tokenizer(path);
    if (!made) return made.error();
    return TextModel{std::move(*made), std::nullopt};
  }
  if (path.ends_with(".gguf")) return load_gguf(path);
  Result<text::Tokenizer> tokenizer = text::Tokenizer::load(path);
  if (!tokenizer) return tokenizer.error();
  return with_template(std::move(*tokenizer), text::find_chat_template(path), path);
}

Result<net::SamplingDefaults> load_sampling_defaults(const std::string& path) {
  net::SamplingDefaults defaults;
  const std::string file = path + "/generation_config.json";
  std::ifstream stream(file);
  if (path.ends_with(".gguf") || !stream) return defaults;
  const auto json = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return invalid(file, "is not a JSON object");
  SamplingParams p;
  const auto read = [&json](const char* key, auto& value) {
    const auto it = json.find(key);
    if (it != json.end() && it->is_number()) it->get_to(value);
  };
  read("temperature", p.temperature);
  read("top_p", p.top_p);
  read("top_k", p.top_k);
  read("min_p", p.min_p);
  read("repetition_penalty", p.repetition_penalty);
  // Hugging Face's way to say greedy.
  if (const auto it = json.find("do_sample"); it != json.end() && *it == false) p.temperature = 0;
  constexpr std::int32_t kAnyVocab = std::numeric_limits<std::int32_t>::max();
  if (auto ok = check_sampling_params(p, kAnyVocab); !ok) {
    return invalid(file + ": " + ok.error().field, ok.error().message);
  }
  defaults.temperature = p.temperature;
  defaults.top_p = p.top_p;
  defaults.top_k = p.top_k;
  defaults.min_p = p.min_p;
  defaults.repetition_penalty = p.repetition_penalty;
  return defaults;
}

}  // namespace millrace
