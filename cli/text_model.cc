#include "cli/text_model.h"

#include "config/gguf_file.h"
#include "net/text/tokenizer_gguf.h"

namespace millrace {

namespace {

std::string token_text(const text::Tokenizer& tokenizer, std::optional<std::int32_t> id) {
  return id ? std::string(tokenizer.id_to_token(*id)) : std::string();
}

Result<TextModel> with_template(text::Tokenizer tokenizer, Result<std::string> source) {
  if (!source) {
    if (source.error().code != ErrorCode::kNotFound) return source.error();
    return TextModel{std::move(tokenizer), std::nullopt};
  }
  Result<text::ChatTemplate> chat = text::ChatTemplate::load(
      *source, token_text(tokenizer, tokenizer.bos()), token_text(tokenizer, tokenizer.eos()));
  if (!chat) return chat.error();
  return TextModel{std::move(tokenizer), std::move(*chat)};
}

Result<TextModel> load_gguf(const std::string& path) {
  Result<GgufFile> file = GgufFile::open(path);
  if (!file) return file.error();
  Result<text::TokenizerData> data = text::tokenizer_data_from_gguf(*file);
  if (!data) return data.error();
  Result<text::Tokenizer> tokenizer = text::Tokenizer::create(std::move(*data));
  if (!tokenizer) return tokenizer.error();
  constexpr std::string_view kKey = "tokenizer.chat_template";
  if (!file->has(kKey)) return TextModel{std::move(*tokenizer), std::nullopt};
  Result<std::string_view> source = file->get_string(kKey);
  if (!source) return source.error();
  return with_template(std::move(*tokenizer), std::string(*source));
}

}  // namespace

Result<TextModel> load_text_model(const std::string& path) {
  if (path.ends_with(".gguf")) return load_gguf(path);
  Result<text::Tokenizer> tokenizer = text::Tokenizer::load(path);
  if (!tokenizer) return tokenizer.error();
  return with_template(std::move(*tokenizer), text::find_chat_template(path));
}

}  // namespace millrace
