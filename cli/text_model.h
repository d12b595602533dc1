// The text side of a model: its tokenizer and chat template, from the same path as its weights.
#pragma once

#include <optional>
#include <string>

#include "config/result.h"
#include "net/openai_types.h"
#include "net/text/chat_template.h"
#include "net/text/tokenizer.h"

namespace millrace {

struct TextModel {
  text::Tokenizer tokenizer;
  std::optional<text::ChatTemplate> chat_template;  // none shipped: chat requests are refused
};

// What generation_config.json of a Hugging Face folder says of sampling, over the API's own
// defaults; a GGUF file says nothing. Errors name the field.
Result<net::SamplingDefaults> load_sampling_defaults(const std::string& path);

// `path`: a Hugging Face folder, a .gguf file, or a random model (cli/random_text.h).
Result<TextModel> load_text_model(const std::string& path);

}  // namespace millrace
