// Tokenizer out of the metadata of a GGUF file (keys tokenizer.ggml.*).
#pragma once

#include "config/gguf_file.h"
#include "config/result.h"
#include "net/text/tokenizer.h"

namespace millrace::text {

// Understands tokenizer.ggml.model "gpt2" with tokenizer.ggml.pre "lfm2"; any other pre-tokenizer
// is refused by name, because a wrong split gives plausible but wrong tokens. As in llama.cpp,
// "lfm2" ignores merges for pieces that are tokens, and adds BOS unless
// tokenizer.ggml.add_bos_token says otherwise. Errors: field is the metadata key.
Result<TokenizerData> tokenizer_data_from_gguf(const GgufFile& file);

}  // namespace millrace::text
