// A tokenizer for models that are a shape alone (config/random_model.h).
#pragma once

#include <string>

#include "config/result.h"
#include "net/text/tokenizer.h"

namespace millrace {

// A token for each id of the model's vocabulary: the model's special tokens, a token for each byte,
// and words that are numbers (" 300" is token 300). There are no merges, so text becomes a token a
// byte; requests of wanted lengths give token ids. `path` as config/random_model.h has it.
Result<text::Tokenizer> random_tokenizer(const std::string& path);

}  // namespace millrace
