#include "cli/random_text.h"

#include <fmt/format.h>

#include "config/random_model.h"
#include "net/text/byte_alphabet.h"

namespace millrace {

namespace {

// As many special tokens as LFM2's vocabularies begin with.
constexpr std::int32_t kSpecialTokens = 14;

}  // namespace

Result<text::Tokenizer> random_tokenizer(const std::string& path) {
  const Result<ModelConfig> model = random_model_config(path);
  if (!model) return model.error();
  text::TokenizerData data;
  for (std::int32_t id = 0; id < kSpecialTokens; ++id) {
    data.tokens.push_back(fmt::format("<|special_{}|>", id));
    data.added.push_back({id, data.tokens.back()});
  }
  for (int byte = 0; byte < 256; ++byte) {
    data.tokens.push_back(text::bytes_to_token(std::string(1, static_cast<char>(byte))));
  }
  while (static_cast<std::int32_t>(data.tokens.size()) < model->vocab_size) {
    data.tokens.push_back(text::bytes_to_token(fmt::format(" {}", data.tokens.size())));
  }
  data.split_regex = text::kLfm2SplitRegex;
  data.bos = model->bos_token_id;
  data.eos = model->eos_token_ids.front();
  data.pad = model->pad_token_id;
  data.prefix = {model->bos_token_id};
  return text::Tokenizer::create(std::move(data));
}

}  // namespace millrace
